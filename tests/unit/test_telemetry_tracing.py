"""Spans written after the fact: what reaches the file, what is left out, and what is lost when it cannot be written."""

import json
import os
import time
from pathlib import Path

import pytest

from telemetry.traceparent import sampled, trace_id_of
from telemetry.tracing import QUEUE_SPANS_MAX, Kind, child_of, configure, new_traceparent, valid

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


def lines_of(path: Path) -> list[dict[str, object]]:
    """The spans of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trace_reaches_the_file(tmp_path: Path) -> None:
    """Parent, own name given beforehand, links, kind, attributes, instants and error stand in one line each."""
    file = tmp_path / "spans" / "gateway-0.jsonl"
    tracing = configure("gateway", "gateway-0", str(file), 1.0)
    own = tracing.new_traceparent()
    below = tracing.record("send", parent=own, start_ns=20, end_ns=30, kind=Kind.PRODUCER, error="no broker")
    batch = tracing.record("batch", start_ns=25, end_ns=26, links=[below, "rubbish", SAMPLED])
    assert tracing.record("purchase", own=own, start_ns=10, end_ns=40, attributes={"purchase_id": "p", "n": 1}) == own
    tracing.close()
    send, process, purchase = lines_of(file)
    assert purchase == {
        "trace_id": trace_id_of(own),
        "span_id": own[36:52],
        "parent_id": None,
        "name": "purchase",
        "kind": "internal",
        "service": "gateway",
        "instance": "gateway-0",
        "start_ns": 10,
        "end_ns": 40,
        "attributes": {"purchase_id": "p", "n": 1},
        "links": [],
        "status": "ok",
    }
    assert (send["trace_id"], send["parent_id"], send["span_id"]) == (trace_id_of(own), own[36:52], below[36:52])
    assert (send["kind"], send["status"]) == ("producer", "error: no broker")
    assert process["trace_id"] == trace_id_of(batch) != trace_id_of(own)
    assert process["links"] == [
        {"trace_id": trace_id_of(own), "span_id": below[36:52]},
        {"trace_id": TRACE, "span_id": SPAN},
    ]
    assert file.stat().st_mode & 0o077 == 0


def test_an_unsampled_trace_leaves_nothing(tmp_path: Path) -> None:
    """No span, and the same traceparent back."""
    tracing = configure("s", "s-0", str(tmp_path / "s.jsonl"), 0.0)
    own = tracing.new_traceparent()
    assert not tracing.sampled(own)
    assert tracing.record("x", own=own, start_ns=1, end_ns=2) == own
    assert sampled(child_of(own)) is False
    tracing.close()
    assert (tmp_path / "s.jsonl").read_text() == ""


def test_without_a_file_nothing_is_sampled() -> None:
    """The guard says no, and recording all the same does no harm."""
    tracing = configure("s", "s-0", "", 1.0)
    assert not tracing.sampled(tracing.new_traceparent())
    assert sampled(tracing.record("x", start_ns=1, end_ns=2))
    tracing.close()


@pytest.mark.parametrize(
    "outside",
    [
        *("", "rubbish", SAMPLED[:-1], SAMPLED + "0", SAMPLED.replace("a", "g"), SAMPLED.upper(), "ff" + SAMPLED[2:]),
        *("00-" + "0" * 32 + SAMPLED[35:], SAMPLED[:36] + "0" * 16 + "-01"),
        *(SAMPLED[:-2] + "é1", SAMPLED[:-2] + "+1", SAMPLED[:3] + "0x" + SAMPLED[5:], SAMPLED + "\n"),
    ],
)
def test_a_malformed_traceparent_gets_a_new_trace(tmp_path: Path, outside: str) -> None:
    """It is not valid, and a span below it opens a trace of its own."""
    assert not valid(outside)
    tracing = configure("s", "s-0", str(tmp_path / "s.jsonl"), 1.0)
    assert trace_id_of(tracing.record("x", parent=outside, start_ns=1, end_ns=2)) != TRACE
    tracing.close()
    assert lines_of(tmp_path / "s.jsonl")[0]["parent_id"] is None


def test_the_flag_byte_decides() -> None:
    """Its lowest bit is the sampled flag, whatever the others say."""
    flags = {"00": False, "01": True, "02": False, "03": True, "ff": True, "fe": False}
    assert {flag: sampled(SAMPLED[:-2] + flag) for flag in flags} == flags
    assert not sampled(None)
    assert valid(SAMPLED)
    assert valid(UNSAMPLED)
    assert 300 < sum(sampled(new_traceparent(0.5)) for _ in range(1000)) < 700


def test_a_full_disk_drops_and_counts() -> None:
    """Recording goes on; the loss is told."""
    tracing = configure("s", "s-0", "/dev/full", 1.0)
    for _ in range(10):
        tracing.record("x", start_ns=1, end_ns=2)
    tracing.flush()
    assert tracing.dropped == 10
    tracing.close()


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    """A file that takes nothing any more holds up the writer, never the caller, and memory stays bounded."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    tracing = configure("s", "s-0", str(pipe), 1.0)
    started = time.monotonic()
    while not tracing.dropped:
        tracing.record("x", start_ns=1, end_ns=2)
        assert time.monotonic() - started < 60, "the queue has no end"
    for _ in range(1000):
        tracing.record("x", start_ns=1, end_ns=2)
    assert 1000 <= tracing.dropped <= 1001
    os.close(reader)  # the blocked write ends with an error, and so does each after it
    tracing.close()
    assert tracing.dropped > QUEUE_SPANS_MAX


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    """It names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write spans to .*STAMPEDE_SPAN_FILE"):
        configure("s", "s-0", str(tmp_path / "file" / "s.jsonl"), 1.0)
