"""The guard against a Postgres that is older than what was applied before: nothing may be done by it.

A process without a partition pays, expires and sends like the others: it must notice too. The cure is `recover`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from eventlog.reader import LogBroken
from order_writer.postgres.pool import Pool, outage_logged, wait_or_stop
from stampede_schemas.topics import DECISIONS

COMMITTED_S_MAX = 10.0
VERIFY_EVERY_S = 1.0  # well within the grace of expiry: no hold expires by an older database

PROGRESS = "SELECT partition, next_offset FROM progress"


def check_known(partition: int, known: int, applied: int) -> None:
    """Compare up to where Postgres has a partition (or may have it, after `recover`) with what was applied before.

    Raises:
        LogBroken: Postgres knows less.
    """
    if known < applied:
        raise LogBroken(
            f"{DECISIONS.name}/{partition} was applied up to {applied} before, but Postgres has it only up to {known}: "
            "an older database was restored. Nothing was changed. Run `python -m order_writer recover`, then start "
            "again."
        )


def committed_offsets(client: Consumer, topic: str, partitions: list[int]) -> dict[int, int]:
    """The offsets that the client's group has committed; nothing where it never has. Raises KafkaException."""
    if not partitions:
        return {}
    found = client.committed([TopicPartition(topic, n) for n in partitions], timeout=COMMITTED_S_MAX)
    for one in found:
        if one.error is not None:
            raise KafkaException(one.error)
    return {one.partition: one.offset for one in found if one.offset >= 0}


class Fetching(Protocol):
    """Any connection."""

    def fetch(self, query: str, /) -> Awaitable[list[Any]]:
        """All rows."""


class ProgressGuard:
    """Up to where this process has seen each partition of `decisions` in Postgres: it must not act on an older one."""

    def __init__(self) -> None:
        self._reached: dict[int, int] = {}

    def __getitem__(self, partition: int) -> int:
        return self._reached.get(partition, 0)

    def note(self, reached: Mapping[int, int]) -> None:
        """Remember offsets that were seen or committed."""
        self._reached |= {n: max(offset, self[n]) for n, offset in reached.items()}

    async def verify(self, connection: Fetching) -> None:
        """Compare, and note what is there.

        Raises:
            LogBroken: this database is older than what this process has seen.
        """
        before = dict(self._reached)  # what is committed while Postgres answers is no contradiction
        found = {row["partition"]: row["next_offset"] for row in await connection.fetch(PROGRESS)}
        for partition, applied in before.items():
            check_known(partition, found.get(partition, 0), applied)
        self.note(found)

    async def on_connect(self, connection: Fetching) -> None:
        """The same before the first use of a connection: it may lead to another database. At the start to any."""
        if self._reached:
            await self.verify(connection)

    async def watch(self, pool: Pool, stopping: asyncio.Event) -> None:
        """The same each second: behind a pooler the database can be exchanged under an open connection.

        Raises:
            LogBroken: it was.
        """
        while not stopping.is_set():
            with outage_logged("the progress was not verified", logging.DEBUG):
                async with asyncio.timeout(VERIFY_EVERY_S), pool.acquire() as connection:
                    await self.verify(connection)
            await wait_or_stop(stopping, VERIFY_EVERY_S)
