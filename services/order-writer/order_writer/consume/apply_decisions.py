"""One batch of decisions, applied to Postgres in one transaction: progress, rows, payments due, catalogue, saga."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

import asyncpg

from eventlog.reader import Progress
from order_writer.consume.quarantine import (
    NUMBERS_CONSTRAINT,
    PartitionBroken,
    bisect,
    dead_letter_change,
    dead_letter_row,
    placeholder_row,
)
from order_writer.outbox.messages import Outgoing, order_event
from order_writer.postgres.pool import columns, said
from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch, Record, Row, Stock, order_of
from order_writer.unit_of_work import UnitOfWork
from stampede_schemas.identifiers import Millis, Position, ProductId, PurchaseId

LOCK_PROGRESS = "SELECT 1 FROM progress WHERE partition = ANY($1::int[]) ORDER BY partition FOR UPDATE"
ADVANCE = """
UPDATE progress p SET next_offset = m.next_offset, source_offset = m.source_offset, load = m.load, anchor = m.anchor,
       stopped = NULL, recovered_to = CASE WHEN p.recovered_to > m.next_offset THEN p.recovered_to END
FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[])
     AS m (partition, was, next_offset, source_offset, load, anchor)
WHERE p.partition = m.partition AND p.next_offset = m.was"""
# The conflict target is named: an untargeted one would swallow a broken UNIQUE (product_id, reservation_no). Only a
# rejected row is replaced, as if it had never been: the inventory had forgotten the rejection. It keeps `created_at`,
# by which lists are ordered.
INSERT_PURCHASES = """
WITH new AS (
  INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor,
    currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until, trace_id, traceparent,
    version)
  SELECT purchase_id, buyer_id, product_id, quantity,
         CASE WHEN $18 AND status = 'reserved' THEN 'confirmed' ELSE status END, reason, reservation_no,
         unit_price_minor, currency, payment_method, fingerprint, partition, source_offset, source_index,
         now() + hold_ms * interval '1 millisecond', trace_id, traceparent,
         CASE WHEN status = 'rejected' THEN 1 WHEN status = 'released' OR $18 THEN 3 ELSE 2 END
           + coalesce(told.version, 0)
  FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
              $9::text[], $10::text[], $11::text[], $12::int[], $13::bigint[], $14::int[], $15::bigint[], $16::text[],
              $17::text[])
       AS r (purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency,
             payment_method, fingerprint, partition, source_offset, source_index, hold_ms, trace_id, traceparent)
  LEFT JOIN published told USING (purchase_id)
  ON CONFLICT (purchase_id) DO UPDATE SET (buyer_id, product_id, quantity, status, reason, reservation_no,
    unit_price_minor, currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until,
    trace_id, traceparent, version, updated_at) = (excluded.buyer_id, excluded.product_id, excluded.quantity,
    excluded.status, excluded.reason, excluded.reservation_no, excluded.unit_price_minor, excluded.currency,
    excluded.payment_method, excluded.fingerprint, excluded.partition, excluded.source_offset, excluded.source_index,
    excluded.hold_until, excluded.trace_id, excluded.traceparent, excluded.version, now())
  WHERE purchases.status = 'rejected' AND excluded.status <> 'rejected'
  RETURNING purchase_id, payment_method, status, version)
"""
SELECT_NEW = "SELECT purchase_id, version, false AS void FROM new"
# A payment that is there already was voided before its purchase came: nothing may be charged for it any more.
SELECT_NEW_WITH_DUES = """, due AS (
  INSERT INTO payments (purchase_id, method, state) SELECT purchase_id, payment_method, 'due' FROM new
  WHERE status = 'reserved' ON CONFLICT (purchase_id) DO NOTHING RETURNING purchase_id)
SELECT purchase_id, version, status = 'reserved' AND due.purchase_id IS NULL AS void
FROM new LEFT JOIN due USING (purchase_id)"""
POSITIONS = """
SELECT purchase_id, partition, source_offset, source_index FROM purchases WHERE purchase_id = ANY($1::text[])"""
LIST_PRODUCTS = """
INSERT INTO products (product_id, name, unit_price_minor, currency, stock, available, per_buyer_limit, hold_ms, status,
                      opens_at_ms, closes_at_ms, partition, source_offset)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::int[],
                     $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::int[], $13::bigint[])
ON CONFLICT (product_id) DO UPDATE SET (name, unit_price_minor, currency, stock, available, per_buyer_limit, hold_ms,
  status, opens_at_ms, closes_at_ms, partition, source_offset, updated_at) = (excluded.name, excluded.unit_price_minor,
  excluded.currency, excluded.stock, excluded.available, excluded.per_buyer_limit, excluded.hold_ms, excluded.status,
  excluded.opens_at_ms, excluded.closes_at_ms, excluded.partition, excluded.source_offset, now())"""
MOVE_STOCK = """
UPDATE products p SET stock = p.stock + s.added, available = s.available, source_offset = s.source_offset,
       updated_at = now()
FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[])
     AS s (product_id, partition, added, available, source_offset)
WHERE p.product_id = s.product_id AND p.partition = s.partition"""

SALES_PER_SLICE = 100

At = tuple[int, int]  # partition and offset of a `requests` record
Change = tuple[tuple[int, ProductId], Stock]
Sale = tuple[orders.Confirmed, Outgoing]
Insert = Callable[[list[Row]], Awaitable[None]]


class Move(NamedTuple):
    """A partition's progress from `was` (its next offset before the batch) to `to`."""

    was: int
    to: Progress


class ProgressConflict(Exception):
    """Another writer has moved a partition on: this batch is dropped, and reading goes on from the stored progress."""


async def apply(
    unit: UnitOfWork,
    moves: Mapping[int, Move],
    batch: Batch,
    *,
    confirm: bool,
    sources: Mapping[At, Record] | None = None,
) -> list[Row]:
    """Write one batch; the caller's transaction makes it one step. Returns the rows that are new or replaced a no.

    Args:
        unit: the open transaction.
        moves: by partition; together exactly the records that `batch` was made of.
        batch: what they say; nothing when all of them were void.
        confirm: sell at once, for installations that take no payment.
        sources: the records, after Postgres refused the batch as a whole: it is split, and refused ones become dead
            letters.

    Raises:
        ProgressConflict: nothing of it may be committed.
        PartitionBroken: a purchase was reserved twice, or a reservation number came twice; the latter only with
            `sources`, since only then it is known where.
        Exception: a row error, without `sources`.
    """
    await _advance(unit, moves)
    new: dict[str, int] = {}
    heard: list[tuple[PurchaseId, orders.Message]] = []
    sales: dict[str, Sale] = {}
    rows = list(batch.rows.values())

    async def sell(some: list[Row]) -> None:
        sold = [row for row in some if confirm and row.status == "reserved"]
        for at in range(0, len(sold), SALES_PER_SLICE):
            part = sold[at : at + SALES_PER_SLICE]
            sales.update((row.purchase_id, _sale(row, orders.FIRST_EVENT_VERSION, unit.now_ms)) for row in part)
            await asyncio.sleep(0)  # the rows are larger than a socket's buffer: the rest of them goes on its way

    async def insert(some: list[Row]) -> None:
        # Postgres has the rows first; while it inserts them their events are written, as if all were new.
        inserted, _ = await asyncio.gather(_insert(unit, some, confirm=confirm), sell(some))
        new.update((record["purchase_id"], record["version"]) for record in inserted)
        heard.extend((record["purchase_id"], orders.PaymentDeclined()) for record in inserted if record["void"])

    if sources is None:
        if rows:
            await insert(rows)
        await _catalogue(unit, list(batch.stocks.items()))
    else:
        rows = await _insert_what_can_be(unit, rows, new, insert, sources)
        stale = await bisect(unit.connection, list(batch.stocks.items()), partial(_catalogue, unit))
        for at, (name, error) in {(n, stock.source_offset): (name, e) for ((n, name), stock), e in stale}.items():
            dead_letter_change(unit, sources[at], name, error)  # a record holds many products: one letter
    unit.payments_due = bool(rows) and not confirm
    _tell_of_sales(unit, rows, new, sales)
    others = batch.again
    if len(new) < len(batch.rows):
        others = others + [row for row in rows if row.purchase_id not in new and row.status == "reserved"]
        rows = [row for row in rows if row.purchase_id in new]
    await _expect_known(unit, others)
    await unit.tell(heard + batch.later)
    return rows


async def _insert(unit: UnitOfWork, rows: list[Row], *, confirm: bool) -> list[asyncpg.Record]:
    """The rows that are new: their versions, and whether their payments are void already."""
    query = INSERT_PURCHASES + (SELECT_NEW if confirm else SELECT_NEW_WITH_DUES)
    return await unit.connection.fetch(query, *columns(rows, len(Row._fields)), confirm)


async def _insert_what_can_be(
    unit: UnitOfWork, rows: list[Row], new: dict[str, int], insert: Insert, sources: Mapping[At, Record]
) -> list[Row]:
    """Insert by halves, each refused row as a placeholder. The rows that are there now, or were before."""
    refused = await bisect(unit.connection, rows, insert)
    for row, error in refused:
        if getattr(error, "constraint_name", None) == NUMBERS_CONSTRAINT:
            raise PartitionBroken(
                row.partition,
                f"a reservation number was given twice, the fold of partition {row.partition} is broken: {said(error)}",
            )
    unstorable = await bisect(unit.connection, [placeholder_row(row) for row, _ in refused], insert)
    gone = {row.purchase_id for row, _ in unstorable}
    for row, error in refused:
        if row.purchase_id in gone or row.purchase_id in new:
            dead_letter_row(unit, row, new.get(row.purchase_id), error, sources[row.partition, row.source_offset])
            gone.add(row.purchase_id)
    return [row for row in rows if row.purchase_id not in gone]


async def _expect_known(unit: UnitOfWork, rows: list[Row]) -> None:
    """Reservations that were not stored must be redelivered ones.

    Another one of the same partition means a broken fold. Older purchase ids did not name their product and could be
    reserved in two partitions: there the later one changes nothing, and is released by a decision in the same log.
    """
    if not rows:
        return
    names = [row.purchase_id for row in rows if "\0" not in row.purchase_id]
    found = await unit.connection.fetch(POSITIONS, names)
    known = {purchase_id: Position(*position) for purchase_id, *position in found}
    for row in rows:
        first = known.get(row.purchase_id)
        if first is not None and first.partition == row.partition and first != row.position:
            raise PartitionBroken(
                row.partition,
                f"a purchase was reserved twice, at {first} and {row.position}: "
                f"the fold of partition {row.partition} is broken",
            )


async def _advance(unit: UnitOfWork, moves: Mapping[int, Move]) -> None:
    """First in the transaction: a second writer of the same records waits here, then finds that progress has moved."""
    await unit.connection.execute(LOCK_PROGRESS, list(moves))
    rows = [(p, m.was, m.to.next_offset, m.to.source_offset, m.to.load, m.to.anchor) for p, m in moves.items()]
    if await unit.connection.execute(ADVANCE, *columns(rows, 6)) != f"UPDATE {len(rows)}":
        raise ProgressConflict


def _sale(row: Row, version: int, now_ms: Millis) -> Sale:
    sold = orders.Confirmed(order_of(row), version)
    return sold, order_event(sold, now_ms)


def _tell_of_sales(unit: UnitOfWork, rows: list[Row], new: dict[str, int], sales: dict[str, Sale]) -> None:
    for row in rows:
        version = new.get(row.purchase_id)
        sale = sales.get(row.purchase_id)
        if row.status != "reserved" or version is None or sale is None:
            continue
        # A version that was told before a restore is not told again.
        sold, event = sale if sale[0].version == version else _sale(row, version, unit.now_ms)
        unit.changed.append(sold)
        unit.sending.append(event)


async def _catalogue(unit: UnitOfWork, changes: list[Change]) -> None:
    whole = [_product_row(*item) for item in changes if item[1].whole]
    moved = [(p, n, s.added, s.available, s.source_offset) for (n, p), s in changes if not s.whole]
    if whole:
        await unit.connection.execute(LIST_PRODUCTS, *columns(whole, 13))
    if moved:
        await unit.connection.execute(MOVE_STOCK, *columns(moved, 5))


def _product_row(key: tuple[int, ProductId], stock: Stock) -> tuple[object, ...]:
    told = stock.whole
    assert told is not None
    return (
        told.product_id,
        told.name,
        told.unit_price_minor,
        told.currency,
        told.stock + stock.added,
        stock.available,
        told.per_buyer_limit,
        told.hold_ms,
        told.status,
        told.opens_at_ms,
        told.closes_at_ms,
        key[0],
        stock.source_offset,
    )
