"""Applies the records of `decisions`: only those that count, one transaction a batch."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import asyncpg
import msgspec

from eventlog.reader import CountingReader, Fenced, LogBroken, Progress
from order_writer.consume import apply_decisions
from order_writer.consume.apply_decisions import At, Move
from order_writer.consume.quarantine import PartitionBroken, is_row_error
from order_writer.ops.metrics import Metrics
from order_writer.ops.spans import Spans
from order_writer.postgres.pool import said
from order_writer.restore.restore_guard import ProgressGuard, check_known
from order_writer.saga.decision_batch import Batch, Record, Row
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.codec import decode_decisions
from stampede_schemas.topics import DECISIONS

ORDERS_PER_TRANSACTION_MAX = 2_000

STOP = "UPDATE progress SET stopped = $2 WHERE partition = $1"
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """The content of one transaction: the effects of the records, and the records by the request they answer."""

    effects: Batch
    sources: dict[At, Record]
    started_ns: int


class Decisions:
    """See `progress_consumer.BatchHandler`. `confirm`: sell at once, for installations that take no payment."""

    topic = DECISIONS.name
    shards_max = 2
    begin = """
    INSERT INTO progress (partition, next_offset, source_offset, load, anchor, topic_id)
    SELECT unnest($1::int[]), 0, -1, '', -1, $2 ON CONFLICT (partition) DO NOTHING"""
    stored = """
    SELECT partition, next_offset, source_offset, load, anchor, topic_id, recovered_to FROM progress
    WHERE partition = ANY($1::int[])"""

    def __init__(
        self, units: UnitsOfWork, guard: ProgressGuard, metrics: Metrics, spans: Spans, *, confirm: bool
    ) -> None:
        self._units, self._guard, self._metrics, self._spans, self._confirm = units, guard, metrics, spans, confirm

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
            self._metrics.void.labels(read.reason).inc()
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
        """One transaction; for a broken partition another one that says so."""
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
        """Write one batch; if Postgres refuses something in it, once more, in parts."""
        try:
            async with self._units.open() as unit:
                return await apply_decisions.apply(unit, moves, part.effects, confirm=self._confirm)
        except Exception as error:
            if not is_row_error(error):
                raise
            _log.warning("a batch holds what Postgres will never take, writing it in parts: %s", said(error))
        async with self._units.open() as unit:
            return await apply_decisions.apply(unit, moves, part.effects, confirm=self._confirm, sources=part.sources)
