"""One transaction of the order-writer: messages to the saga are read, decided and written here, under row locks.

The shell of `saga/orders.py`. Everything that changes an order goes through `UnitOfWork.tell`; everything that leaves
goes into the one outbox row of the transaction. It must not call anything but Postgres.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from order_writer.outbox.messages import Outgoing, dead_letter, encode_outbox, order_event, releases
from order_writer.postgres.pool import Connection, Pool, columns
from order_writer.saga import orders
from order_writer.saga.decision_batch import Record
from stampede_schemas.identifiers import Millis, Position, ProductId, PurchaseId

NO_CURRENCY = "XXX"  # as ISO 4217 says it
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
VOID = """
INSERT INTO payments (purchase_id, method, state, captured)
SELECT purchase_id, method, 'void_due', captured FROM unnest($1::text[], $2::text[], $3::bool[])
       AS v (purchase_id, method, captured)
ON CONFLICT (purchase_id) DO UPDATE SET state = 'void_due', captured = payments.captured OR excluded.captured,
  attempts = 0, next_at = now(), lease_until = NULL"""
# A void that was answered before the money was known of settles nothing: another one is due.
VOIDED = """
UPDATE payments p SET state = 'voided', lease_until = NULL
FROM unnest($1::text[], $2::bool[]) AS v (purchase_id, captured)
WHERE p.purchase_id = v.purchase_id AND p.state = 'void_due' AND (v.captured OR NOT p.captured)"""

_STATUS: dict[type[orders.Purchase], str] = {
    orders.Reserved: "reserved",
    orders.Confirmed: "confirmed",
    orders.Released: "released",
}


class Refused(NamedTuple):
    """A message that can never be acted on, and why."""

    purchase_id: PurchaseId
    message: orders.Message
    reason: str


class Money:
    """Changes to payments by one round of the saga. `voids`: by purchase, its method and whether money was taken."""

    def __init__(self) -> None:
        self.approved: set[PurchaseId] = set()
        self.captured: set[PurchaseId] = set()
        self.voids: dict[PurchaseId, tuple[str, bool]] = {}
        self.voided: list[tuple[PurchaseId, bool]] = []


class UnitOfWork:
    """A transaction under way. `changed`, `overruled`, `released`, `refused`, `dead_letters`: what came of it."""

    def __init__(self, connection: Connection, now_ms: Millis) -> None:
        self.connection = connection
        self.now_ms = now_ms
        self.sending: list[Outgoing] = []
        self.changed: list[orders.Confirmed | orders.Released] = []
        self.overruled = 0  # confirmed orders whose units the log had given back
        self.released: list[orders.RequestRelease] = []
        self.dead_letters: list[str] = []  # reasons of dead letters
        self.refused: list[Refused] = []
        self.payments_due = False

    async def tell(
        self, heard: Sequence[tuple[PurchaseId, orders.Message]], *, skip_rejected: bool = False
    ) -> set[PurchaseId]:
        """Let the saga react to each message in order, and write what follows. Returns the purchases without a row.

        With `skip_rejected` those with a rejected row are left alone and returned too: a decision that revives one may
        still be on its way.
        """
        if not heard:
            return set()
        # Postgres' text cannot hold a NUL: such a purchase has no row, and asking for it would be an error.
        names = {purchase_id for purchase_id, _ in heard if "\0" not in purchase_id}
        found = await self.connection.fetch(LOAD, list(names))
        rows: dict[PurchaseId, asyncpg.Record] = {row["purchase_id"]: row for row in found}
        skipped = {name for name, row in rows.items() if skip_rejected and row["status"] == "rejected"}
        before = {purchase_id: purchase_of(row) for purchase_id, row in rows.items()}
        now = dict(before)
        money = Money()
        for purchase_id, message in (one for one in heard if one[0] not in skipped):
            purchase = now.get(purchase_id)
            effects = orders.react(purchase, message) if purchase else ()
            if isinstance(message, orders.PaymentVoided) and not any(isinstance(e, orders.Refuse) for e in effects):
                money.voided.append((purchase_id, message.captured))
            if purchase is None:
                continue
            now[purchase_id] = orders.evolve(purchase, effects)
            for effect in effects:
                match effect:
                    case orders.Transition(state):
                        by_log = isinstance(message, orders.StockReleased)
                        self.overruled += by_log and isinstance(purchase, orders.Confirmed)
                        self.changed.append(state)
                        self.sending.append(order_event(state, self.now_ms))
                    case orders.RequestRelease():
                        self.released.append(effect)
                    case orders.Void(captured):
                        money.voids[purchase_id] = rows[purchase_id]["payment_method"], captured
                        money.approved.discard(purchase_id)
                    case orders.KeepApproval():
                        money.approved.add(purchase_id)
                    case orders.KeepCapture():
                        money.captured.add(purchase_id)
                    case orders.Refuse(reason):
                        self.refused.append(Refused(purchase_id, message, reason))
                    case orders.ConfirmReturn():
                        pass
        await self._write(before, now)
        await self.pay(money)
        return {purchase_id for purchase_id, _ in heard} - before.keys() | skipped

    async def pay(self, money: Money) -> None:
        """Change payments, after their orders: locks are taken in one order everywhere."""
        if money.approved:
            await self.connection.execute(KEEP_APPROVALS, sorted(money.approved))
        if money.captured:
            await self.connection.execute(KEEP_CAPTURES, sorted(money.captured))
        if money.voided:
            await self.connection.execute(VOIDED, *columns(sorted(money.voided), 2))
        if money.voids:
            voids = [(purchase_id, method, captured) for purchase_id, (method, captured) in sorted(money.voids.items())]
            await self.connection.execute(VOID, *columns(voids, 3))
            self.payments_due = True

    async def _write(self, before: dict[PurchaseId, orders.Purchase], now: dict[PurchaseId, orders.Purchase]) -> None:
        changes = [
            (
                purchase_id,
                _STATUS[type(state)],
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

    def dead_letter(
        self, topic: str, record: Record, reason: str, *, first_seen_ms: Millis, index: int | None = None
    ) -> None:
        """Send a dead letter with this transaction."""
        self.sending.append(dead_letter(topic, record, reason, first_seen_ms=first_seen_ms, index=index))
        self.dead_letters.append(reason)

    async def close(self) -> None:
        """Write the outbox row, last."""
        self.sending += releases(self.released)
        if self.sending:
            await self.connection.execute("INSERT INTO outbox (messages) VALUES ($1)", encode_outbox(self.sending))


class UnitsOfWork:
    """Opens units on a pool; after a commit, tells `committed` (with the start, in ns) and wakes who has to go on.

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
