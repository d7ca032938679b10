"""Applies the records of `decisions`: only those that count, one transaction a batch.

A transaction moves the progress, inserts rows as the saga decided them, makes payments due, brings the catalogue up to
date and passes on to the saga what follows in the log.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import asyncpg
import msgspec

from eventlog.reader import CountingReader, Fenced, LogBroken, Progress
from order_writer.consume.progress_consumer import Move, advance
from order_writer.consume.quarantine import (
    NUMBERS_CONSTRAINT,
    PartitionBroken,
    bisect,
    dead_letter_change,
    dead_letter_row,
    is_row_error,
    placeholder_of,
)
from order_writer.ops.metrics import Metrics
from order_writer.ops.spans import Spans
from order_writer.postgres.pool import describe
from order_writer.restore.restore_guard import ProgressGuard, check_known
from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch, Entry, Record, Row, Stock, entry_of
from order_writer.unit_of_work import UnitOfWork, UnitsOfWork, columns, storable
from stampede_schemas.codec import decode_decisions
from stampede_schemas.identifiers import Position, ProductId, PurchaseId
from stampede_schemas.topics import DECISIONS

ORDERS_PER_TRANSACTION_MAX = 2_000

STOP = "UPDATE progress SET stopped = $2 WHERE partition = $1"
LOCK_PROGRESS = "SELECT 1 FROM progress WHERE partition = ANY($1::int[]) ORDER BY partition FOR UPDATE"
ADVANCE = """
UPDATE progress p SET next_offset = m.next_offset, source_offset = m.source_offset, load = m.load, anchor = m.anchor,
       stopped = NULL, recovered_to = CASE WHEN p.recovered_to > m.next_offset THEN p.recovered_to END
FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[])
     AS m (partition, was, next_offset, source_offset, load, anchor)
WHERE p.partition = m.partition AND p.next_offset = m.was
RETURNING EXISTS (SELECT FROM published) AS restored"""
PUBLISHED = "SELECT purchase_id, version FROM published WHERE purchase_id = ANY($1::text[])"
# The conflict target is named: an untargeted one would swallow a broken UNIQUE (product_id, reservation_no). Only a
# rejected row is replaced, as if it had never been: the inventory had forgotten the rejection. It keeps `created_at`,
# by which lists are ordered.
INSERT_PURCHASES = """
WITH new AS (
  INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor,
    currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until, trace_id, traceparent,
    version)
  SELECT purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency,
         payment_method, fingerprint, partition, source_offset, source_index,
         now() + hold_ms * interval '1 millisecond', trace_id, traceparent, version
  FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
              $9::text[], $10::text[], $11::text[], $12::int[], $13::bigint[], $14::int[], $15::bigint[], $16::text[],
              $17::text[], $18::int[])
       AS r (purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency,
             payment_method, fingerprint, partition, source_offset, source_index, hold_ms, trace_id, traceparent,
             version)
  ON CONFLICT (purchase_id) DO UPDATE SET (buyer_id, product_id, quantity, status, reason, reservation_no,
    unit_price_minor, currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until,
    trace_id, traceparent, version, updated_at) = (excluded.buyer_id, excluded.product_id, excluded.quantity,
    excluded.status, excluded.reason, excluded.reservation_no, excluded.unit_price_minor, excluded.currency,
    excluded.payment_method, excluded.fingerprint, excluded.partition, excluded.source_offset, excluded.source_index,
    excluded.hold_until, excluded.trace_id, excluded.traceparent, excluded.version, now())
  WHERE purchases.status = 'rejected' AND excluded.status <> 'rejected'
  RETURNING purchase_id, payment_method, status, version)
"""
SELECT_NEW = "SELECT purchase_id, false AS void FROM new"
# A payment that is there already was voided before its purchase came: nothing may be charged for it any more. A held
# row above version 2 was published before a restore, so its payment was begun at some time: it is queried only.
SELECT_NEW_WITH_DUES = """, due AS (
  INSERT INTO payments (purchase_id, method, state, begun_at)
  SELECT purchase_id, payment_method, 'due', CASE WHEN version > 2 THEN '-infinity'::timestamptz END FROM new
  WHERE status = 'reserved' ON CONFLICT (purchase_id) DO NOTHING RETURNING purchase_id)
SELECT purchase_id, status = 'reserved' AND due.purchase_id IS NULL AS void
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

_log = logging.getLogger(__name__)

At = tuple[int, int]  # partition and offset of a `requests` record
Change = tuple[tuple[int, ProductId], Stock]


class Part(NamedTuple):
    """The content of one transaction: the effects of the records, and the records by the request they answer."""

    effects: Batch
    sources: dict[At, Record]
    started_ns: int


class Decisions:
    """See `progress_consumer.BatchHandler`. `unpaid`: this installation takes no payment."""

    topic = DECISIONS.name
    shards_max = 2
    begin = """
    INSERT INTO progress (partition, next_offset, source_offset, load, anchor, topic_id)
    SELECT unnest($1::int[]), 0, -1, '', -1, $2 ON CONFLICT (partition) DO NOTHING"""
    stored = """
    SELECT partition, next_offset, source_offset, load, anchor, topic_id, recovered_to FROM progress
    WHERE partition = ANY($1::int[])"""

    def __init__(
        self, units: UnitsOfWork, guard: ProgressGuard, metrics: Metrics, spans: Spans, *, unpaid: bool
    ) -> None:
        self._units, self._guard, self._metrics, self._spans, self._unpaid = units, guard, metrics, spans, unpaid

    def progress_of(self, row: asyncpg.Record, committed: int) -> Progress:
        """Refuse an older database: one that has less than the group or this process has seen applied."""
        partition, known = row["partition"], max(row["next_offset"], row["recovered_to"] or 0)
        check_known(partition, known, max(committed, self._guard[partition]))
        return Progress(row["next_offset"], row["source_offset"], row["load"], row["anchor"])

    def new_batch(self) -> Part:
        """Its time begins to count."""
        return Part(Batch(), {}, time.time_ns())

    def is_full(self, batch: Part) -> bool:
        """By decisions: a record holds many."""
        return batch.effects.decisions >= ORDERS_PER_TRANSACTION_MAX

    def add(self, batch: Part, progress: Progress, record: Record) -> Progress:
        """Fenced records move the progress and nothing else."""
        reader = CountingReader(progress)
        read = reader.read(record.offset, record.value)
        if isinstance(read, Fenced):
            self._metrics.fenced.labels(read.reason).inc()
            if read.reason == "gap":
                where = (self.topic, record.partition, record.offset)
                _log.error("a decisions record was lost on its way: %s/%d at %d", *where)
            return reader.progress
        try:
            batch.effects.add(record.partition, read.source_offset, decode_decisions(read))
        except msgspec.DecodeError as error:
            raise LogBroken(
                f"{self.topic}/{record.partition} holds at {record.offset} what this version cannot read ({error}): "
                "upgrade the order-writer before the inventory"
            ) from None
        batch.sources[record.partition, read.source_offset] = record
        return reader.progress

    async def apply(self, batch: Part, moves: Mapping[int, Move]) -> None:
        """One transaction; for a broken partition another one that stores why."""
        try:
            stored = await self._store(batch, moves)
        except PartitionBroken as broken:
            await self._units.pool.execute(STOP, broken.partition, str(broken))
            raise
        self._guard.note({partition: move.to.next_offset for partition, move in moves.items()})
        self._metrics.batch_seconds.observe((time.time_ns() - batch.started_ns) / 1e9)
        for status, count in Counter(row.status for row in stored).items():
            self._metrics.orders.labels(status).inc(count)
        self._spans.batch(stored, batch.effects.decisions, batch.started_ns)

    async def _store(self, part: Part, moves: Mapping[int, Move]) -> list[Row]:
        """Write one batch; if Postgres refuses a row of it, once more by bisecting it."""
        try:
            async with self._units.open() as unit:
                return await apply(unit, moves, part.effects, unpaid=self._unpaid)
        except Exception as error:
            if not is_row_error(error):
                raise
            _log.warning("Postgres refuses a row of a batch, bisecting it: %s", describe(error))
        async with self._units.open() as unit:
            return await apply(unit, moves, part.effects, unpaid=self._unpaid, sources=part.sources)


async def apply(
    unit: UnitOfWork,
    moves: Mapping[int, Move],
    batch: Batch,
    *,
    unpaid: bool,
    sources: Mapping[At, Record] | None = None,
) -> list[Row]:
    """Write one batch; the caller's transaction makes it one step. Returns the rows that were stored.

    Args:
        unit: the open transaction.
        moves: by partition; together exactly the records that `batch` was made of.
        batch: their content; empty when all of them were void.
        unpaid: reservations are sold at once, since no payment is taken.
        sources: the records, after Postgres refused the batch as a whole: it is bisected, and refused rows become dead
            letters.

    Raises:
        ProgressConflict: nothing of it may be committed.
        PartitionBroken: a purchase was reserved twice, or a reservation number came twice; the latter only with
            `sources`, since only then it is known where.
        Exception: a row error, without `sources`.
    """
    published = await _advance(unit, moves, batch)
    message = orders.NothingToPay() if unpaid else None
    entries = [entry_of(row, published.get(row.purchase_id, 0), message) for row in batch.rows.values()]
    new: dict[PurchaseId, bool] = {}
    changes = list(batch.stocks.items())
    if sources is None:
        await _insert(unit, new, entries)
        await _catalogue(unit, changes)
    else:
        entries = await _insert_storable(unit, new, entries, sources)
        refused = await bisect(unit.connection, changes, partial(_catalogue, unit))
        for at, (name, error) in {(n, stock.source_offset): (name, e) for ((n, name), stock), e in refused}.items():
            dead_letter_change(unit, sources[at], name, error)  # a record holds many products: one dead letter
    stored = [entry for entry in entries if entry.row.purchase_id in new]
    unit.payments_due = bool(stored) and not unpaid
    for entry in stored:
        if entry.effects:
            unit.carry_out(entry.row.purchase_id, entry.effects)
    repeated = batch.again
    if len(stored) < len(entries):
        others = (entry.row for entry in entries if entry.row.purchase_id not in new)
        repeated = repeated + [row for row in others if row.status == "reserved"]
    await _expect_known(unit, repeated)
    # A payment that is there already was voided before its purchase came: it is not charged again.
    declined = [(purchase_id, orders.PaymentDeclined()) for purchase_id, void in new.items() if void]
    await unit.handle([*declined, *batch.later])
    return [entry.row for entry in stored]


async def _advance(unit: UnitOfWork, moves: Mapping[int, Move], batch: Batch) -> dict[PurchaseId, int]:
    """Move the progress. Returns the versions of the batch's purchases that were published before a restore."""
    rows = [(p, m.was, m.to.next_offset, m.to.source_offset, m.to.load, m.to.anchor) for p, m in moves.items()]
    moved = await advance(unit.connection, LOCK_PROGRESS, ADVANCE, rows)
    found = await unit.connection.fetch(PUBLISHED, storable(batch.rows)) if moved[0]["restored"] else []
    return {row["purchase_id"]: row["version"] for row in found}


async def _insert(unit: UnitOfWork, new: dict[PurchaseId, bool], entries: list[Entry]) -> None:
    """Insert the rows, and add to `new` those that were not there, each with whether its payment is void already."""
    if not entries:
        return
    states = [entry.state for entry in entries]
    due = orders.Reserved in map(type, states)
    query = INSERT_PURCHASES + (SELECT_NEW_WITH_DUES if due else SELECT_NEW)
    ended = [state for state in states if isinstance(state, orders.Confirmed | orders.Released)]
    inserting = unit.connection.fetch(query, *zip(*(entry.values() for entry in entries), strict=True))
    # Postgres has the rows first; while it inserts them their events are encoded, as if all were new.
    inserted, _ = await asyncio.gather(inserting, unit.encode_events(ended))
    new.update((record["purchase_id"], record["void"]) for record in inserted)


async def _insert_storable(
    unit: UnitOfWork, new: dict[PurchaseId, bool], entries: list[Entry], sources: Mapping[At, Record]
) -> list[Entry]:
    """Insert by halves, each refused row as a placeholder. The entries that are there now, or were before."""
    insert = partial(_insert, unit, new)
    refused = await bisect(unit.connection, entries, insert)
    for row, error in ((entry.row, error) for entry, error in refused):
        if getattr(error, "constraint_name", None) == NUMBERS_CONSTRAINT:
            raise PartitionBroken(
                row.position.partition,
                f"a reservation number was given twice, the fold of partition {row.position.partition} is broken: "
                f"{describe(error)}",
            )
    placeholders = [placeholder_of(entry) for entry, _ in refused]
    unstorable = await bisect(unit.connection, placeholders, insert)
    gone = {entry.row.purchase_id for entry, _ in unstorable}
    for entry, (_, error) in zip(placeholders, refused, strict=True):
        row = entry.row
        if row.purchase_id in gone or row.purchase_id in new:
            unit.carry_out(row.purchase_id, entry.effects)
            dead_letter_row(unit, row, error, sources[row.position.partition, row.position.offset])
            gone.add(row.purchase_id)
    return [entry for entry in entries if entry.row.purchase_id not in gone]


async def _expect_known(unit: UnitOfWork, rows: list[Row]) -> None:
    """Reservations that were not stored must be redelivered ones.

    Another one of the same partition means a broken fold. Older purchase ids did not name their product and could be
    reserved in two partitions: there the later one changes nothing, and is released by a decision in the same log.
    """
    if not rows:
        return
    found = await unit.connection.fetch(POSITIONS, storable(row.purchase_id for row in rows))
    known = {purchase_id: Position(*position) for purchase_id, *position in found}
    for row in rows:
        first = known.get(row.purchase_id)
        if first is not None and first.partition == row.position.partition and first != row.position:
            raise PartitionBroken(
                first.partition,
                f"a purchase was reserved twice, at {first} and {row.position}: "
                f"the fold of partition {first.partition} is broken",
            )


async def _catalogue(unit: UnitOfWork, changes: list[Change]) -> None:
    whole = [_product_row(*item) for item in changes if item[1].whole]
    moved = [(p, n, s.added, s.available, s.source_offset) for (n, p), s in changes if not s.whole]
    if whole:
        await unit.connection.execute(LIST_PRODUCTS, *columns(whole, 13))
    if moved:
        await unit.connection.execute(MOVE_STOCK, *columns(moved, 5))


def _product_row(key: tuple[int, ProductId], stock: Stock) -> tuple[object, ...]:
    listed = stock.whole
    assert listed is not None
    return (
        listed.product_id,
        listed.name,
        listed.unit_price_minor,
        listed.currency,
        listed.stock + stock.added,
        stock.available,
        listed.per_buyer_limit,
        listed.hold_ms,
        listed.status,
        listed.opens_at_ms,
        listed.closes_at_ms,
        key[0],
        stock.source_offset,
    )
