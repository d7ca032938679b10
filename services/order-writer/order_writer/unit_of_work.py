"""One transaction of the order-writer: messages to the saga are read, decided and written here, under row locks.

The shell of `saga/orders.py`. The effects of every message go through `UnitOfWork.carry_out`; everything that leaves
goes into the one outbox row of the transaction. It must not call anything but Postgres.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, assert_never

import asyncpg

from order_writer.outbox.messages import Outgoing, dead_letter, encode_outbox, order_event, releases
from order_writer.postgres.pool import Connection, Pool
from order_writer.saga import orders
from order_writer.saga.decision_batch import Record
from stampede_schemas.identifiers import Millis, Position, ProductId, PurchaseId

EVENTS_PER_SLICE = 100
NO_CURRENCY = "XXX"  # as in ISO 4217
NOW_MS = "SELECT (extract(epoch FROM now()) * 1000)::bigint"
LOAD = """
SELECT purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency,
       payment_method, partition, source_offset, source_index, refund, stock_returned_at IS NOT NULL AS returned,
       traceparent, version
FROM purchases WHERE purchase_id = ANY($1::text[]) ORDER BY purchase_id FOR UPDATE"""
CHANGE = """
UPDATE purchases p SET status = c.status, reason = c.reason, refund = c.refund, version = c.version,
       updated_at = CASE WHEN c.version > p.version THEN now() ELSE p.updated_at END,
       stock_returned_at = CASE WHEN c.returned THEN coalesce(p.stock_returned_at, now()) END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::bool[], $7::int[])
     AS c (purchase_id, status, reason, refund, version, returned, was)
WHERE p.purchase_id = c.purchase_id AND p.version = c.was AND p.status <> 'rejected'"""
KEEP_APPROVALS = """
UPDATE payments SET state = 'approved', captured = true, lease_until = NULL WHERE purchase_id = ANY($1::text[])"""
KEEP_CAPTURES = "UPDATE payments SET captured = true WHERE purchase_id = ANY($1::text[])"
# Without a row: an approval of a purchase that never came.
VOID = """
INSERT INTO payments (purchase_id, method, state, captured)
SELECT v.purchase_id, coalesce(u.payment_method, 'reported'), 'void_due', v.captured
FROM unnest($1::text[], $2::bool[]) AS v (purchase_id, captured) LEFT JOIN purchases u USING (purchase_id)
ON CONFLICT (purchase_id) DO UPDATE SET state = 'void_due', captured = payments.captured OR excluded.captured,
  attempts = 0, next_at = now(), lease_until = NULL"""
# A void that was answered before the capture was known does not count: another one is due.
VOIDED = """
UPDATE payments p SET state = 'voided', lease_until = NULL
FROM unnest($1::text[], $2::bool[]) AS v (purchase_id, captured)
WHERE p.purchase_id = v.purchase_id AND p.state = 'void_due' AND (v.captured OR NOT p.captured)"""


class UnitOfWork:
    """A transaction under way. `changed`, `overruled`, `released`, `refused`, `dead_letters`: what came of it."""

    def __init__(self, connection: Connection, now_ms: Millis) -> None:
        self.connection = connection
        self.now_ms = now_ms
        self.changed: list[orders.Confirmed | orders.Released] = []
        self.overruled = 0  # confirmed orders whose units the log had given back
        self.released: list[orders.RequestRelease] = []
        self.refused: list[tuple[orders.Message, str]] = []  # messages that can never be acted on, each with its reason
        self.dead_letters: list[str] = []  # reasons of dead letters
        self.voids: dict[PurchaseId, bool] = {}  # whether money was taken
        self.payments_due = False
        self.sending: list[Outgoing] = []
        self._approved: set[PurchaseId] = set()
        self._captured: set[PurchaseId] = set()
        self._voided: list[tuple[PurchaseId, bool]] = []
        self._encoded: dict[PurchaseId, tuple[orders.Purchase, Outgoing]] = {}

    async def handle(
        self, messages: Sequence[tuple[PurchaseId, orders.Message]], *, skip_rejected: bool = False
    ) -> set[PurchaseId]:
        """Let the saga react to each message in order, and write what follows. Returns the purchases without a row.

        With `skip_rejected` those with a rejected row are left alone and returned too: a decision that revives one may
        still be on its way.
        """
        if not messages:
            return set()
        found = await self.connection.fetch(LOAD, storable(purchase_id for purchase_id, _ in messages))
        before = {PurchaseId(row["purchase_id"]): purchase_of(row) for row in found}
        skipped = {name for name, state in before.items() if skip_rejected and isinstance(state, orders.Rejected)}
        now = dict(before)
        for purchase_id, message in messages:
            if purchase_id in skipped:
                continue
            purchase = now.get(purchase_id)
            effects = orders.react(purchase, message) if purchase else ()
            refused = [(message, effect.reason) for effect in effects if isinstance(effect, orders.Refuse)]
            self.refused += refused
            if isinstance(message, orders.PaymentVoided) and not refused:
                self._voided.append((purchase_id, message.captured))
            if purchase and effects:
                by_log = isinstance(message, orders.StockReleased)
                self.overruled += by_log and isinstance(purchase, orders.Confirmed)
                now[purchase_id] = orders.evolve(purchase, effects)
                self.carry_out(purchase_id, effects)
        await self._write(before, now)
        return {purchase_id for purchase_id, _ in messages} - before.keys() | skipped

    def carry_out(self, purchase_id: PurchaseId, effects: tuple[orders.Effect, ...]) -> None:
        """Take the effects of one message into this transaction; the caller writes the row's new state."""
        for effect in effects:
            match effect:
                case orders.Transition():
                    self.changed.append(effect.state)
                case orders.RequestRelease():
                    self.released.append(effect)
                case orders.Void():
                    self.voids[purchase_id] = effect.captured
                    self._approved.discard(purchase_id)
                case orders.KeepApproval():
                    self._approved.add(purchase_id)
                case orders.KeepCapture():
                    self._captured.add(purchase_id)
                case orders.Refuse() | orders.ConfirmReturn():
                    pass
                case _:
                    assert_never(effect)

    async def encode_events(self, states: list[orders.Confirmed | orders.Released]) -> None:
        """Encode the events of new rows while Postgres inserts them, before it is known which of them are new."""
        for at in range(0, len(states), EVENTS_PER_SLICE):
            for state in states[at : at + EVENTS_PER_SLICE]:
                self._encoded[state.order.purchase_id] = state, order_event(state, self.now_ms)
            await asyncio.sleep(0)  # the rows are larger than a socket's buffer: the rest of them goes on its way

    def dead_letter(
        self, topic: str, record: Record, reason: str, *, first_seen_ms: Millis, index: int | None = None
    ) -> None:
        """Send a dead letter with this transaction."""
        self.sending.append(dead_letter(topic, record, reason, first_seen_ms=first_seen_ms, index=index))
        self.dead_letters.append(reason)

    async def close(self) -> None:
        """Write the payments, after their orders (locks are taken in one order everywhere), and last the outbox row."""
        if self._approved:
            await self.connection.execute(KEEP_APPROVALS, sorted(self._approved))
        if self._captured:
            await self.connection.execute(KEEP_CAPTURES, sorted(self._captured))
        if self._voided:
            await self.connection.execute(VOIDED, *columns(sorted(self._voided), 2))
        if self.voids:
            await self.connection.execute(VOID, *columns(sorted(self.voids.items()), 2))
            self.payments_due = True
        for state in self.changed:
            encoded, event = self._encoded.get(state.order.purchase_id, (None, None))
            self.sending.append(event if event and encoded is state else order_event(state, self.now_ms))
        self.sending += releases(self.released)
        if self.sending:
            await self.connection.execute("INSERT INTO outbox (messages) VALUES ($1)", encode_outbox(self.sending))

    async def _write(self, before: dict[PurchaseId, orders.Purchase], now: dict[PurchaseId, orders.Purchase]) -> None:
        changes = [
            (
                purchase_id,
                state.status,
                state.reason if isinstance(state, orders.Released) else None,
                state.refund if isinstance(state, orders.Released) else "none",
                state.version,
                isinstance(state, orders.Released) and state.returned,
                before[purchase_id].version,
            )
            for purchase_id, state in now.items()
            if state != before[purchase_id]
        ]
        if changes:
            done = await self.connection.execute(CHANGE, *columns(changes, 7))
            assert done == f"UPDATE {len(changes)}", "rows changed under their own locks"


class UnitsOfWork:
    """Opens units of work on a pool; after a commit, calls `committed` (with the start, in ns) and sets two events.

    `outbox_filled` is set when something is to be sent, `payments_due` when something is to be paid or voided.
    """

    def __init__(self, pool: Pool, committed: Callable[[UnitOfWork, int], None]) -> None:
        self.pool, self._committed = pool, committed
        self.outbox_filled, self.payments_due = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[UnitOfWork]:
        """One transaction. Raising inside rolls everything back."""
        started = time.time_ns()
        async with self.pool.acquire() as connection, connection.transaction():
            unit = UnitOfWork(connection, await connection.fetchval(NOW_MS))
            yield unit
            await unit.close()
        if unit.sending:
            self.outbox_filled.set()
        if unit.payments_due:
            self.payments_due.set()
        self._committed(unit, started)


def columns(rows: list[Any], width: int) -> list[list[Any]]:
    """Rows turned into `width` columns, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def storable(names: Iterable[PurchaseId]) -> list[PurchaseId]:
    """Each once, without those that have a NUL: Postgres' text cannot hold it, and asking for one is an error."""
    return [name for name in set(names) if "\0" not in name]


def purchase_of(row: asyncpg.Record) -> orders.Purchase:
    """The state behind a row of `LOAD`."""
    if row["status"] == "rejected":
        return orders.Rejected(row["version"])
    order = orders.Order(
        PurchaseId(row["purchase_id"]),
        row["buyer_id"],
        ProductId(row["product_id"]),
        row["quantity"],
        Position(row["partition"], row["source_offset"], row["source_index"]),
        row["reservation_no"] or 0,  # a placeholder has none
        row["unit_price_minor"] or 0,
        row["currency"] or NO_CURRENCY,
        row["payment_method"],
        row["traceparent"],
    )
    if row["status"] == "reserved":
        return orders.Reserved(order, row["version"])
    if row["status"] == "confirmed":
        return orders.Confirmed(order, row["version"])
    return orders.Released(order, row["version"], row["reason"], row["refund"], row["returned"])
