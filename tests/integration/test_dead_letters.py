"""Dead letters from the log to the operator and back: listed, shown whole, redriven once, never in a circle."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventlog.kafka import producer
from replay.__main__ import main
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested, PaymentReported, RefundReported
from stampede_schemas.topics import DEAD_LETTERS, ORDER_COMMANDS, REQUESTS, partition_of
from tests.support.builders.orders import Installation, letters, listed, reserved, until

Replay = Callable[..., tuple[int, str]]


@pytest.fixture
def replay(place: Installation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Replay:
    """`replay dead-letters …` here: its exit code and what it said."""
    endpoints = tmp_path / "endpoints.json"
    where = {"kafka": place.kafka, "postgres": place.postgres, "processes": {"inventory": []}}
    endpoints.write_text(json.dumps(where))

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["dead-letters", *arguments, "--endpoints", str(endpoints)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def append(place: Installation, topic: str, partition: int, value: bytes, /, **headers: bytes) -> None:
    """One record of any content."""
    client = producer(place.kafka)
    client.produce(topic, value, partition=partition, headers=list(headers.items()))
    assert client.flush(30) == 0


def sources(replay: Replay) -> list[str]:
    """Where the letters came from."""
    return [letter["source"] for letter in json.loads(replay("list", "--json")[1])]


async def has(place: Installation, **wanted: object) -> bool:
    """Whether the purchase `p1` has these values."""
    found = await place.rows("SELECT * FROM purchases WHERE purchase_id = 'p1'")
    return bool(found) and wanted.items() <= dict(found[0]).items()


async def test_a_letter_whose_cause_is_gone_is_redriven_once(place: Installation, replay: Replay) -> None:
    """A refund that was reported before the cancellation: a letter; redriven after it, the buyer sees the refund."""
    money: dict[str, Any] = {"purchase_id": PurchaseId("p1"), "amount_minor": 8_400, "currency": "EUR"}
    paid = PaymentReported(report_id=RequestId("r1"), outcome="approved", provider_ref="x", **money)
    refund = RefundReported(report_id=RequestId("r2"), provider_ref="x", **money)
    cancel = CancelRequested(request_id=RequestId("c1"), purchase_id=PurchaseId("p1"), actor="buyer-of-p1")
    place.log.append(2, [listed()], [reserved("p1", 1)])
    async with place.writer(payment="webhook") as task:
        place.command(paid)
        await until(lambda: has(place, status="confirmed"), "paid", task=task)
        place.command(refund)
        place.command(cancel)
        await until(lambda: has(place, status="released", refund="due"), "cancelled", task=task)
        await until(lambda: letters(place, 1), "the letter", task=task)
        [source] = await asyncio.to_thread(sources, replay)
        code, said = await asyncio.to_thread(replay, "show", source)
        assert (code, '"report_id":"r2"' in said, "refund_of_a_sold_order" in said) == (0, True, True)
        code, said = await asyncio.to_thread(replay, "redrive", source)
        assert (code, "stands again at order-commands/" in said) == (0, True), said
        await until(lambda: has(place, refund="done"), "refunded", task=task)
        before = len(place.values(ORDER_COMMANDS.name))
        code, said = await asyncio.to_thread(replay, "redrive", source, "--json")
        assert (code, json.loads(said)["sent"]) == (0, False)
        assert len(place.values(ORDER_COMMANDS.name)) == before == 4
    again = place.records(ORDER_COMMANDS.name)[-1]
    assert again.value() == place.records(DEAD_LETTERS.name)[0].value()
    assert again.partition() == partition_of("p1")


async def test_a_redriven_record_that_dies_again_goes_no_further(place: Installation, replay: Replay) -> None:
    """Its letter is refused in one sentence; so is one that nobody but the inventory may write, and one unknown."""
    append(place, ORDER_COMMANDS.name, 4, b"\x00garbage", shade=b"grey")
    async with place.writer() as task:
        await until(lambda: letters(place, 1), "the letter", task=task)
        assert (await asyncio.to_thread(replay, "redrive", "order-commands/4/0"))[0] == 0
        await until(lambda: letters(place, 2), "it died again", task=task)
    second = place.records(ORDER_COMMANDS.name)[1]
    assert dict(second.headers() or []) == {"shade": b"grey", "redriven_of": b"order-commands/4/0"}
    [_, letter] = json.loads(replay("list", "--json")[1])
    assert letter["headers"]["original.redriven_of"] == "order-commands/4/0"
    append(place, DEAD_LETTERS.name, 0, b"{}", topic=b"stampede.decisions", partition=b"3", offset=b"9", index=b"1")
    for source, word in (
        ("order-commands/4/1", "died again"),
        ("decisions/3/9/1", "only the inventory"),
        ("order-commands/4/77", "no dead letter"),
    ):
        code, said = replay("redrive", source)
        assert (code, word in said, len(said.strip().splitlines())) == (2, True, 1), said
    assert len(place.values(ORDER_COMMANDS.name)) == 2


async def test_one_request_of_a_batch_goes_back_alone(place: Installation, replay: Replay) -> None:
    """The letter of the second of two requests: a batch of one, in the partition where it stood, and its neighbour
    is not asked a second time; a record that was unreadable as a whole goes back as it was."""
    bad = b'{"type":"PurchaseRequested","v":9}'
    append(place, REQUESTS.name, 7, b'{"requests":[{"type":"RestockRequested"},' + bad + b"]}")
    append(place, REQUESTS.name, 7, b"\xff\x00")
    where = {"topic": b"stampede.requests", "partition": b"7", "reason": b"unknown_version"}
    append(place, DEAD_LETTERS.name, 0, bad, offset=b"0", index=b"1", **where)
    append(place, DEAD_LETTERS.name, 0, b"\xff\x00", offset=b"1", index=b"0", **where)
    for source in ("requests/7/0/1", "requests/7/1/0", "requests/7/0/1"):
        assert replay("redrive", source)[0] == 0
    assert place.values(REQUESTS.name)[2:] == [b'{"requests":[' + bad + b"]}", b"\xff\x00"]
