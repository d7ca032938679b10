"""Poison on `stampede.order-commands`: one dead letter each, with equal bytes; the next good command is heard."""

import asyncio
import json
import time
from typing import Any

from eventlog.kafka import producer
from stampede_schemas.codec import encode
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from stampede_schemas.topics import DEAD_LETTERS, ORDER_COMMANDS
from tests.support.builders.orders import Installation, empty, listed, reserved, until

PARTITION = 6
MONEY = {"type": "PaymentReported", "report_id": "r", "purchase_id": "p1", "outcome": "approved", "provider_ref": "x"}
CANCEL = {"type": "CancelRequested", "request_id": "c", "purchase_id": "p1", "actor": "operator"}


def report(amount: str) -> bytes:
    """A payment report with an amount as it is written."""
    return json.dumps(MONEY | {"currency": "EUR"})[:-1].encode() + b',"amount_minor":' + amount.encode() + b"}"


def cancel(**fields: object) -> bytes:
    """The operator's cancellation of `p1`, spoilt."""
    return json.dumps(CANCEL | fields).encode()


POISON: dict[str, bytes | None] = {
    "random bytes": bytes(range(256)),
    "no bytes": b"",
    "a tombstone": None,
    "bad UTF-8": cancel(actor="operatorX").replace(b"X", b"\xff"),
    "a lone surrogate": cancel(actor="operatorX").replace(b"X", b"\\ud800"),
    "cut off": cancel()[:-9],
    "trailing junk": cancel() + b"x",
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "an array": b"[" + cancel() + b"]",
    "a number": b"1",
    "no type": b'{"purchase_id":"p1"}',
    "an unknown type": cancel(type="Obliterate"),
    "an unknown version": cancel(v=2),
    "no purchase": b'{"type":"CancelRequested","request_id":"c","actor":"operator"}',
    "a NUL in the id": cancel(purchase_id="p\0"),
    "an empty id": cancel(purchase_id=""),
    "an id of 97": cancel(purchase_id="p" * 97),
    "NaN": report("NaN"),
    "1e999": report("1e999"),
    "2^63": report(str(2**63)),
    "10,000 digits": report("9" * 10_000),
    "-1": report("-1"),
    "1.5": report("1.5"),
    "an amount in quotes": report('"8400"'),
    "a megabyte": cancel(actor="x" * 1_000_000),
    "another's cancellation": cancel(actor="buyer-of-somebody"),
    "another amount": report("1"),
}


async def test_each_poison_is_one_dead_letter_and_the_rest_flows(place: Installation) -> None:
    """Between good commands, while orders wait: equal bytes, position, reason; nothing that was sold is touched; the
    next good command is heard without a pause for each, and one replayed changes nothing."""
    place.log.append(2, [listed()], [reserved("p1", 1, method="unknown"), reserved("p2", 2, method="unknown")])
    good = CancelRequested(request_id=RequestId("g"), purchase_id=PurchaseId("p2"), actor="buyer-of-p2")
    client = producer(place.kafka)
    async with place.writer() as task:
        held = "SELECT count(*) = 2 FROM purchases WHERE status = 'reserved'"
        await until(lambda: place.value(held), "held", task=task)
        for value in POISON.values():
            client.produce(ORDER_COMMANDS.name, value, partition=PARTITION, headers=[("shade", b"grey")])
        client.produce(ORDER_COMMANDS.name, encode(good), partition=PARTITION)
        client.produce(ORDER_COMMANDS.name, encode(good), partition=PARTITION)
        assert client.flush(30) == 0
        cancelled = "SELECT true FROM purchases WHERE purchase_id = 'p2' AND reason = 'cancelled' AND version = 3"
        # A second's pause for each of them would take longer than this is waited for.
        await until(lambda: place.value(cancelled), "the good one is heard", len(POISON) / 2, task)
        await until(lambda: empty(place), "sent", task=task)
        assert (await place.statuses())["p1"] == "reserved"
    letters = await asyncio.to_thread(place.records, DEAD_LETTERS.name)
    found = {
        int(headers["offset"]): (letter.value() or b"", headers) for letter in letters for headers in [head(letter)]
    }
    assert len(found) == len(letters) == len(POISON)
    for offset, (name, value) in enumerate(POISON.items()):
        content, headers = found[offset]
        assert content == (value or b""), name
        where = (headers["topic"], headers["partition"], headers["original.shade"])
        assert where == (ORDER_COMMANDS.name, str(PARTITION), "grey"), name
        wanted = {"another's cancellation": "not_the_buyer", "another amount": "amount_differs"}
        assert headers["reason"] == wanted.get(name, "not_a_command"), name
        assert abs(int(headers["first_seen_ms"]) - time.time_ns() // 1_000_000) < 60_000, name


def head(letter: Any) -> dict[str, str]:
    """A letter's headers."""
    return {name: value.decode() for name, value in letter.headers()}
