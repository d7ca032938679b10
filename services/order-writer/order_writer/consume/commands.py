"""What the consumer of `order-commands` does with its records."""

from collections.abc import Mapping

import asyncpg

from eventlog.reader import Progress
from order_writer.consume.apply_commands import COMMANDS_PER_TRANSACTION_MAX, apply
from order_writer.consume.apply_decisions import Move
from order_writer.saga.decision_batch import Record
from order_writer.unit_of_work import Units
from stampede_schemas.topics import ORDER_COMMANDS


class Commands:
    """See `progress_consumer.BatchHandler`: every record counts, and the progress is an offset alone."""

    topic = ORDER_COMMANDS.name
    shards_max = 1
    begin = """
    INSERT INTO command_progress (partition, next_offset, topic_id)
    SELECT unnest($1::int[]), 0, $2 ON CONFLICT (partition) DO NOTHING"""
    stored = "SELECT partition, next_offset, topic_id FROM command_progress WHERE partition = ANY($1::int[])"

    def __init__(self, units: Units) -> None:
        self._units = units

    def progress_of(self, row: asyncpg.Record, committed: int) -> Progress:
        """A restored database may be behind the group: `recover` lets commands be applied again."""
        del committed
        return Progress(row["next_offset"])

    def new_batch(self) -> list[Record]:
        """In the order of their arrival."""
        return []

    def is_full(self, batch: list[Record]) -> bool:
        """By commands."""
        return len(batch) >= COMMANDS_PER_TRANSACTION_MAX

    def add(self, batch: list[Record], progress: Progress, record: Record) -> Progress:
        """Whatever it holds: what is no command becomes a dead letter."""
        del progress
        batch.append(record)
        return Progress(record.offset + 1)

    async def apply(self, batch: list[Record], moves: Mapping[int, Move]) -> None:
        """One transaction."""
        async with self._units.open() as unit:
            await apply(unit, {partition: (move.was, move.to.next_offset) for partition, move in moves.items()}, batch)
