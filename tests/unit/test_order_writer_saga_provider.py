"""Play money: how each payment method behaves, and books that several writers share and that outlive them."""

import asyncio
import fcntl
import json
import os
from pathlib import Path

import pytest

from order_writer.payments.provider import Approved, Declined, Unknown, Verdict, Voided, Webhook
from order_writer.saga.orders import Order
from payment_simulator.journal import Journal
from payment_simulator.provider import Simulated
from stampede_schemas.identifiers import PurchaseId
from tests.support.builders.orders import order

P1 = PurchaseId("p1")


def events(path: Path) -> list[tuple[str, str, int]]:
    """What the books say."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    return [(line["event"], line["purchase_id"], line["amount_minor"]) for line in lines]


def paid_by(method: str, purchase_id: str = "p1") -> Order:
    """An order with this payment method, 84.00 in all."""
    values = {name: getattr(order(purchase_id), name) for name in Order.__struct_fields__}
    return Order(**values | {"payment_method": method})


async def test_what_one_writer_did_the_others_know(tmp_path: Path) -> None:
    """A second writer's capture, and that of the next life of the first, are the same capture; a void holds for all."""
    books = str(tmp_path / "payments.jsonl")
    one, other = Journal(books), Journal(books)
    assert await one.capture(P1, 8_400, "EUR")
    assert await other.capture(P1, 8_400, "EUR")
    await other.void(P1)
    await one.void(P1)
    again = Journal(books)
    assert not await again.capture(P1, 8_400, "EUR")
    assert not await again.holds(P1)
    await again.void(PurchaseId("p2"))
    assert not await one.capture(PurchaseId("p2"), 8_400, "EUR")
    assert events(tmp_path / "payments.jsonl") == [
        ("captured", "p1", 8_400),
        ("refunded", "p1", 8_400),
        ("voided", "p1", 0),
        ("voided", "p2", 0),
    ]


async def test_captures_and_voids_at_once_leave_books_that_balance(tmp_path: Path) -> None:
    """Three writers, 200 purchases, everything at the same time: taken at most once, and never after the void."""
    books = tmp_path / "payments.jsonl"
    writers = [Journal(str(books)) for _ in range(3)]
    ids = [PurchaseId(f"p{n}") for n in range(200)]
    calls = [writer.capture(purchase_id, 1, "EUR") for purchase_id in ids for writer in writers]
    voids = [writer.void(purchase_id) for purchase_id in ids[::2] for writer in writers]
    await asyncio.gather(*(call for pair in zip(calls, voids + voids, strict=True) for call in pair))
    seen: dict[str, list[str]] = {}
    for event, purchase_id, _ in events(books):
        seen.setdefault(purchase_id, []).append(event)
    allowed = (["captured"], ["voided"], ["captured", "refunded", "voided"])
    assert [found for found in seen.values() if found not in allowed] == []
    assert all(seen[purchase_id] == ["captured"] for purchase_id in ids[1::2])
    assert all(seen[purchase_id][-1] == "voided" for purchase_id in ids[::2])


async def test_half_a_line_is_nothing(tmp_path: Path) -> None:
    """A writer that died as it wrote has published nothing; the next line is a whole one."""
    books = tmp_path / "payments.jsonl"
    books.write_text('{"at_ms":1,"event":"captured","purchase_id":"p1","amo')
    assert await Journal(str(books)).capture(P1, 8_400, "EUR")
    assert json.loads(books.read_text().splitlines()[-1])["purchase_id"] == "p1"
    assert await Journal(str(books)).holds(P1)


async def test_a_frozen_writer_does_not_freeze_the_others(tmp_path: Path) -> None:
    """Whoever holds the books too long makes the provider unreachable, not the whole process."""
    books = str(tmp_path / "payments.jsonl")
    journal = Journal(books)
    frozen = os.open(books, os.O_RDWR)
    fcntl.flock(frozen, fcntl.LOCK_EX)
    with pytest.raises(TimeoutError):
        await journal.capture(P1, 8_400, "EUR")
    os.close(frozen)
    assert await journal.capture(P1, 8_400, "EUR")


@pytest.mark.parametrize(
    ("method", "answers", "taken"),
    [
        ("ok", [Approved()], True),
        ("declined", [Declined("declined")], False),
        ("slow", [Approved()], True),
        ("flaky", [Unknown(), Unknown(), Approved()], True),
        ("unknown", [Unknown(), Unknown(), Unknown()], True),
        ("late", [Approved()], True),
        ("cash", [Declined("unknown_method")], False),
    ],
)
async def test_each_payment_method(method: str, answers: list[Verdict], taken: bool) -> None:
    """What it answers, time after time, whether money is taken, and that nothing is taken after a void."""
    provider = Simulated(Journal(), slow_s=0.0, late_s=0.0)
    assert [await provider.authorize(paid_by(method)) for _ in answers] == answers
    assert await provider.query(paid_by(method)) == (Approved() if taken else Declined("not_captured"))
    await provider.void(P1, captured=False)
    assert await provider.query(paid_by(method)) == Declined("not_captured")
    assert Approved() not in [await provider.authorize(paid_by(method)) for _ in answers]


async def test_the_webhook_waits_for_a_refund_only_where_money_was_taken() -> None:
    """Where no approval is known there is nothing to give back."""
    assert await Webhook().void(P1, captured=False) == Voided()
    assert await Webhook().void(P1, captured=True) != Voided()
