"""One purchase's trace in the terminal, from the files of several processes."""

from pathlib import Path

import pytest

from devstack.__main__ import main
from devstack.waterfall import spans_of_purchase
from telemetry.tracing import configure

MS = 1_000_000


def write_spans(folder: Path) -> None:
    """Two processes, two purchases, one batch that serves both, and a line torn by a kill."""
    gateway = configure("gateway", "gateway-0", str(folder / "gateway-0.jsonl"), 1.0)
    inventory = configure("inventory", "inventory-0", str(folder / "inventory-0.jsonl"), 1.0)
    mine, other = gateway.new_traceparent(), gateway.new_traceparent()
    send = gateway.record("send requests", parent=mine, start_ns=1 * MS, end_ns=3 * MS)
    inventory.record("process requests", links=[send, other], start_ns=4 * MS, end_ns=6 * MS)
    inventory.record("decide", parent=send, start_ns=4 * MS, end_ns=5 * MS, attributes={"purchase_id": "p1"})
    gateway.record("purchase", own=mine, start_ns=0, end_ns=8 * MS, attributes={"purchase_id": "p1"})
    gateway.record("purchase of another", own=other, start_ns=0, end_ns=MS, attributes={"purchase_id": "p2"})
    gateway.close()
    inventory.close()
    with (folder / "inventory-0.jsonl").open("a") as torn:
        torn.write('{"trace_id": "12')


def trace(folder: Path, purchase_id: str) -> int:
    """Run the documented command; its exit code."""
    return main(["trace", "--id", purchase_id, "--spans", str(folder)])


def test_a_purchase_is_found_in_all_files(tmp_path: Path) -> None:
    """Its own spans and the batch that served it, by start; nothing of another purchase."""
    write_spans(tmp_path)
    found = [span.name for span in spans_of_purchase(tmp_path, "p1")]
    assert found == ["purchase", "send requests", "process requests", "decide"]


def test_the_command_prints_a_waterfall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a span, below its parent, with its start and duration in milliseconds."""
    write_spans(tmp_path)
    assert trace(tmp_path, "p1") == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split("  ")[0].strip() for row in rows] == ["gateway-0", "gateway-0", "inventory-0", "inventory-0"]
    purchase, send, decide, batch = rows
    assert purchase.index("purchase") < send.index("send requests") < decide.index("decide")
    assert "(2 linked)" in batch
    assert "4.0  1.00" in decide
    assert purchase.count("━") > send.count("━") > decide.count("━") > 0


def test_an_unknown_purchase_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1, and the id and folder it looked in; a folder that is not there is the same."""
    for folder in (tmp_path, tmp_path / "missing"):
        assert trace(folder, "nobody") == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "nobody" in said.err
        assert len(said.err.splitlines()) == 1
