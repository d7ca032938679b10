"""What `order-commands` does to orders: once, in order with the decisions, and never forgotten."""

import asyncio
from datetime import UTC, datetime

import asyncpg
import pytest

from eventlog.reader import LogBroken, Progress
from order_writer.consume.commands import Commands, sweep_pending
from order_writer.consume.progress_consumer import Move
from order_writer.endings import product_cancellation
from order_writer.endings.product_cancellation import ORDERS_PER_TRANSACTION_MAX
from order_writer.payments.provider import Approved, Verdict, Voided
from order_writer.saga.decision_batch import Record
from order_writer.saga.orders import Order
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.codec import encode
from stampede_schemas.identifiers import ProductId, PurchaseId, RequestId
from stampede_schemas.order_commands import CancelProductRequested
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, partition_of
from tests.support.orders import (
    Installation,
    applied_until,
    insert_orders,
    letters,
    listed,
    reserved,
    until,
    waiting_messages,
)
from tests.support.reports import cancelled, paid

NOW = datetime.now(UTC)


class Till:
    """Approves everything, and remembers the orders of its calls."""

    def __init__(self) -> None:
        self.asked: list[PurchaseId] = []

    async def authorize(self, order: Order) -> Verdict:
        """Approve."""
        self.asked.append(order.purchase_id)
        return Approved()

    query = authorize

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """Done."""
        del purchase_id, captured
        return Voided()


async def test_a_command_is_applied_once_whoever_reads_it(place: Installation) -> None:
    """Two writers that do not know of each other read the same commands: a wrong one gives one dead letter, not two."""
    place.log.append(0, [listed()], [reserved(f"p{i}", i + 1) for i in range(40)])
    place.command(*(cancelled(f"p{i}", "stranger") for i in range(40)))
    async with (
        place.writer("a", group="a", payment="none") as a,
        place.writer("b", group="b", payment="none"),
    ):
        await until(lambda: letters(place, 40), "the dead letters", task=a)
        assert await place.value("SELECT sum(next_offset) FROM command_progress") == 40
        place.command(cancelled("p1"))  # both read on from the same place
        await until(lambda: place.value("SELECT sum(next_offset) = 41 FROM command_progress"), "one more", task=a)
    assert await letters(place, 40)


async def test_a_partition_of_commands_that_waits_holds_up_only_its_own_holds(place: Installation) -> None:
    """An approval waits in it: its hold outlives its time, and is sold in the end. Holds whose commands stand in other
    partitions expire meanwhile."""
    names = [f"p{n}" for n in range(1, 100)]
    others = [name for name in names if partition_of(name) != partition_of("p1")]
    stuck = "SELECT 1 FROM command_progress WHERE partition = $1 FOR UPDATE"
    async with place.writer(payment="webhook", authorize_grace_ms=500) as task:
        await until(lambda: place.value("SELECT count(*) = 12 FROM command_progress"), "running", task=task)
        async with asyncpg.create_pool(place.postgres, min_size=1, max_size=1) as pool:
            async with pool.acquire() as connection, connection.transaction():
                assert await connection.fetchval(stuck, partition_of("p1")) == 1
                place.command(paid("p1"))
                held = [reserved(name, number, hold_ms=500) for number, name in enumerate(["p1", *others], 1)]
                place.log.append(2, [listed()], held)
                gone = "SELECT count(*) = $1 FROM purchases WHERE status = 'released'"
                await until(lambda: place.value(gone, len(others)), "the others expire", task=task)
                assert await place.value(
                    "SELECT status = 'reserved' AND hold_until < now() FROM purchases WHERE purchase_id = 'p1'"
                )
            sold = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND status = 'confirmed'"
            await until(lambda: place.value(sold), "what was paid is sold", task=task)


async def test_what_was_asked_before_the_start_comes_before_what_is_done(place: Installation) -> None:
    """A cancellation waits in the log when the order-writer starts: it is not charged, and not published as sold."""
    place.log.append(2, [listed()], [reserved("p1", 1), reserved("p2", 2)])
    place.command(cancelled("p1"))
    till = Till()
    async with place.writer(provider=till) as task:
        await until(lambda: place.value("SELECT true FROM purchases WHERE status = 'confirmed'"), "p2", task=task)
    assert await place.statuses() == {"p1": "released", "p2": "confirmed"}
    assert till.asked == ["p2"]


async def test_an_approval_that_waited_in_the_log_is_not_overtaken_by_expiry(place: Installation) -> None:
    """The order-writer is down when the report comes and while the hold ends: paid in time, the buyer keeps it."""
    place.log.append(2, [listed()], [reserved("p1", 1, hold_ms=400)])
    async with place.writer(payment="webhook") as task:
        await until(place.statuses, "a row", task=task)
    place.command(paid("p1"))
    await until(lambda: place.value("SELECT hold_until < now() FROM purchases"), "the hold's end")
    async with place.writer(payment="webhook", authorize_grace_ms=0) as task:
        await until(lambda: place.value("SELECT status <> 'reserved' FROM purchases"), "its end", task=task)
    assert await place.statuses() == {"p1": "confirmed"}


async def test_poison_becomes_dead_letters_and_the_next_command_is_handled(place: Installation) -> None:
    """Bytes of all kinds: one dead letter each, with equal bytes, and the good one after them is acted on."""
    nul = encode(cancelled("p1")).replace(b'"p1"', b'"\\u0000"')
    poison = [b"", b"\xff\xfe", b"{", b"[" * 5_000, b'{"type":"Cancel"}', b'{"type":"PaymentReported","v":2}', nul]
    place.log.append(0, [listed()], [reserved("p1", 1)])
    place.append_commands(*((partition_of("p1"), value) for value in (*poison, encode(cancelled("p1")))))
    async with place.writer(payment="none") as task:
        await until(lambda: place.value("SELECT reason FROM purchases WHERE status = 'released'"), "p1", task=task)
        await until(lambda: letters(place, len(poison)), "the dead letters", task=task)
    assert sorted(place.values(DEAD_LETTERS.name)) == sorted(poison)


async def test_other_commands_than_those_it_knows_stop_the_writer(place: Installation) -> None:
    """A topic that lost its tail, or was recreated, holds other commands: it says so rather than skip or repeat."""
    place.command(cancelled("p1"))
    async with place.writer(payment="none") as task:
        await until(lambda: place.value("SELECT sum(next_offset) = 1 FROM command_progress"), "applied", task=task)
    await place.rows("UPDATE command_progress SET next_offset = next_offset + 1")
    with pytest.raises(LogBroken, match="lost its tail"):
        async with asyncio.timeout(20), place.writer(payment="none") as task:
            await task
    await place.rows("UPDATE command_progress SET topic_id = 'that of a deleted topic'")
    with pytest.raises(LogBroken, match="recreated"):
        async with asyncio.timeout(20), place.writer(payment="none") as task:
            await task


async def test_a_command_and_its_row_that_missed_each_other_meet(quiet: Installation, units: UnitsOfWork) -> None:
    """The command's transaction does not see the row, the row's does not see the command: the sweep joins them."""
    await quiet.rows("INSERT INTO command_progress VALUES (0, 0, 'id')")
    async with units.pool.acquire() as writing:
        begun = writing.transaction()
        await begun.start()
        await writing.execute(
            """INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reservation_no, version,
                 unit_price_minor, currency, payment_method, fingerprint, partition, source_offset, source_index)
               VALUES ('p1', 'buyer-of-p1', 'shoe', 2, 'reserved', 1, 2, 4200, 'EUR', 'ok', 'f', 0, 0, 0)"""
        )
        await Commands(units).apply([Record(encode(paid("p1")), 0, 0, NOW)], {0: Move(0, Progress(1))})
        await begun.commit()
    assert await quiet.statuses() == {"p1": "reserved"}
    await sweep_pending(units)
    assert await quiet.statuses() == {"p1": "confirmed"}
    assert await quiet.value("SELECT count(*) FROM pending_commands") == 0


async def test_a_pending_command_is_a_dead_letter_only_when_its_row_cannot_come(
    quiet: Installation, units: UnitsOfWork
) -> None:
    """Ten minutes after it came, by what `decisions` is applied to: a backlog of any length does not bury it."""
    await quiet.rows("INSERT INTO command_progress VALUES (0, 0, 'id')")
    arrived = [Record(encode(it), 0, n, NOW) for n, it in enumerate((paid("p1"), cancelled("p2")))]
    await Commands(units).apply(arrived, {0: Move(0, Progress(2))})
    await quiet.rows("UPDATE pending_commands SET parked_at = now() - interval '1 hour'")
    for partitions, seconds in ((0, 0.0), (11, 0.0), (12, -3_600.0 + 599)):
        await applied_until(quiet, DECISIONS.name, seconds, partitions)
        await sweep_pending(units)
        assert await quiet.value("SELECT count(*) FROM pending_commands") == 2
    await applied_until(quiet, DECISIONS.name, -3_600.0 + 601)
    await sweep_pending(units)
    assert await quiet.value("SELECT count(*) FROM pending_commands") == 0
    buried = await waiting_messages(quiet)
    assert sorted(message.value for message in buried) == sorted(it.value for it in arrived)
    assert {message.topic for message in buried} == {DEAD_LETTERS.name}
    headers = sorted((dict(message.headers) for message in buried), key=lambda each: each["offset"])
    assert [(each["reason"], each["offset"]) for each in headers] == [(b"no_such_purchase", b"%d" % n) for n in (0, 1)]
    # The money of the one that was paid goes back, though there is no order.
    found = await quiet.rows("SELECT purchase_id, state, captured FROM payments")
    assert [tuple(row) for row in found] == [("p1", "void_due", True)]


async def test_what_was_refunded_before_its_purchase_came_is_never_charged(place: Installation) -> None:
    """Its payment is void: the reservation that comes after all ends at once, and no money is asked for."""
    await place.rows("INSERT INTO payments (purchase_id, method, state, captured) VALUES ('p1', 'x', 'void_due', true)")
    place.log.append(2, [listed()], [reserved("p1", 1), reserved("p2", 2)])
    till = Till()
    async with place.writer(provider=till) as task:
        ended = "SELECT count(*) = 2 FROM purchases WHERE status <> 'reserved'"
        await until(lambda: place.value(ended), "both ended", task=task)
    assert await place.statuses() == {"p1": "released", "p2": "confirmed"}
    assert till.asked == ["p2"]
    assert await place.value("SELECT state FROM payments WHERE purchase_id = 'p1'") in {"void_due", "voided"}


async def test_a_product_is_cancelled_in_batches_that_a_successor_goes_on_with(
    quiet: Installation, units: UnitsOfWork
) -> None:
    """700 orders: after the first batch the order-writer dies; the next one cancels the rest, each order once."""
    await insert_orders(quiet, 700, "confirmed")
    ask = CancelProductRequested(request_id=RequestId("c1"), product_id=ProductId("shoe"), actor="operator")
    await quiet.rows("INSERT INTO command_progress VALUES (0, 0, 'id')")
    for n in range(2):  # the second time is a repetition
        await Commands(units).apply([Record(encode(ask), 0, n, NOW)], {0: Move(n, Progress(n + 1))})
    assert await product_cancellation.batch(units, "c1")
    progress = "SELECT reached, cancelled, done_at IS NOT NULL FROM product_cancellations"
    [first] = await quiet.rows(progress)
    assert tuple(first) == (ORDERS_PER_TRANSACTION_MAX, ORDERS_PER_TRANSACTION_MAX, False)
    while await product_cancellation.sweep(units):
        pass
    [reached] = await quiet.rows(progress)
    assert tuple(reached) == (700, 700, False)  # not done: some may still be on their way from the log
    assert await quiet.value("SELECT count(*) FROM purchases WHERE status = 'released' AND refund = 'due'") == 700
    assert await quiet.value("SELECT count(*) FROM purchases WHERE version = 4") == 700
    await quiet.rows(
        """INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reservation_no, version,
             unit_price_minor, currency, payment_method, fingerprint, partition, source_offset, source_index)
           VALUES ('late', 'b', 'shoe', 2, 'reserved', 701, 2, 4200, 'EUR', 'ok', 'f', 0, 0, 0)"""
    )
    await applied_until(quiet, DECISIONS.name, 0.0)
    assert not await product_cancellation.sweep(units)
    assert await quiet.value("SELECT reason FROM purchases WHERE purchase_id = 'late'") == "cancelled_by_operator"
    assert [tuple(row) for row in await quiet.rows(progress)] == [(701, 701, True)]


async def test_an_operator_cancels_one_order_or_all_of_a_product(place: Installation) -> None:
    """Sold and refunded, given back to the inventory, published; other products are left alone."""
    other = next(name for name in (f"sock-{n}" for n in range(99)) if partition_of(name) == 0)
    place.log.append(0, [listed()], [reserved(f"p{i}", i + 1) for i in range(3)])
    place.log.append(0, [listed(other)], [reserved("q1", 1, product_id=other), reserved("q2", 2, product_id=other)])
    async with place.writer() as task:
        sold = "SELECT count(*) = 5 FROM purchases WHERE status = 'confirmed'"
        await until(lambda: place.value(sold), "sold", task=task)
        place.command(cancelled("q1", "operator"))
        all_of = CancelProductRequested(request_id=RequestId("c9"), product_id=ProductId("shoe"), actor="operator")
        place.command(all_of)
        refunded = "SELECT count(*) = 4 FROM purchases WHERE reason = 'cancelled_by_operator' AND refund = 'done'"
        await until(lambda: place.value(refunded), "refunded", task=task)
        await until(lambda: place.value("SELECT done_at FROM product_cancellations"), "done", task=task)
        await until(lambda: place.value("SELECT count(*) = 0 FROM outbox"), "sent", task=task)
    assert (await place.statuses())["q2"] == "confirmed"
    backs = [(r.purchase_id, r.reason) for _, r in place.requests() if isinstance(r, ReleaseRequested)]
    assert sorted(backs) == [(name, "cancelled_by_operator") for name in ("p0", "p1", "p2", "q1")]
