"""The applied-through watermarks of `decisions` and `order-commands`: instants of Postgres' clock; table `applied`.

A sample is an instant and, read after it, where each partition ends. Once a partition is applied to that end, whatever
was appended to it before the instant is applied: by any order-writer, and also where nothing is ever appended. The
clocks of brokers and gateways are not trusted, they do not enter. A sample that is old is still true.
"""

import asyncio
import logging
from datetime import datetime

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from eventlog.kafka import admin_client
from order_writer.postgres.pool import Pool
from order_writer.unit_of_work import columns
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS

SAMPLE_EVERY_S = 1.0
QUERY_S_MAX = 5.0

NOW = "SELECT clock_timestamp()"
# Sorted, so that two writers lock the rows in one order.
KEEP = """
INSERT INTO applied (topic, partition, until)
SELECT s.topic, s.partition, s.until
FROM unnest($1::text[], $2::int[], $3::bigint[], $4::timestamptz[]) AS s (topic, partition, ends_at, until)
LEFT JOIN progress d ON s.topic = $5 AND d.partition = s.partition
LEFT JOIN command_progress c ON s.topic = $6 AND c.partition = s.partition
WHERE coalesce(d.next_offset, c.next_offset, 0) >= s.ends_at
ORDER BY s.topic, s.partition
ON CONFLICT (topic, partition) DO UPDATE SET until = greatest(applied.until, excluded.until)
RETURNING topic, partition"""
_log = logging.getLogger(__name__)

Key = tuple[str, int]  # topic and partition
KEYS: tuple[Key, ...] = tuple((topic.name, n) for topic in (DECISIONS, ORDER_COMMANDS) for n in range(topic.partitions))


class AppliedThrough:
    """Moves the watermarks. A partition keeps its sample until it is reached: one that is always behind moves too."""

    def __init__(self, kafka: str, pool: Pool) -> None:
        self._kafka, self._pool = kafka, pool
        self._waiting: dict[Key, tuple[int, datetime]] = {}

    async def advance(self) -> dict[Key, int]:
        """Sample the partitions that have no sample, and store those that are reached. Several may do so at once.

        Returns the ends that Kafka told.
        """
        at = await self._pool.fetchval(NOW)  # before the ends: see above
        ends = await asyncio.to_thread(self._ends)
        self._waiting = {key: (end, at) for key, end in ends.items()} | self._waiting
        samples = [(*key, *sample) for key, sample in self._waiting.items()]
        reached = await self._pool.fetch(KEEP, *columns(samples, 4), DECISIONS.name, ORDER_COMMANDS.name)
        for row in reached:
            del self._waiting[row["topic"], row["partition"]]
        return ends

    def _ends(self) -> dict[Key, int]:
        latest = {TopicPartition(*key): OffsetSpec.latest() for key in KEYS}  # type: ignore[no-untyped-call]
        ends: dict[Key, int] = {}
        unknown = ""
        for place, found in admin_client(self._kafka).list_offsets(latest, request_timeout=QUERY_S_MAX).items():
            try:
                ends[place.topic, place.partition] = found.result().offset
            except KafkaException as error:
                unknown = f"{place.topic}/{place.partition}: {error.args[0].str()}"
        if unknown:
            _log.info("the ends of %d partitions are unknown, for one: %s", len(KEYS) - len(ends), unknown)
        return ends
