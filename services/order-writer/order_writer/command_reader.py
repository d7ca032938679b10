"""The consumer of `order-commands`: like that of `decisions`, from wherever the progress in Postgres says.

A record is applied once: its effects and the progress beyond it are one transaction, and progress is moved only from
where the batch begins. After trouble of any kind the batch in hand is dropped and reading goes on from the stored
progress. The group offset is a hint.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from eventlog.kafka import check_passing, consumer, watermarks
from eventlog.reader import LogBroken
from order_writer import commands
from order_writer.commands import COMMANDS_PER_TRANSACTION_MAX, Arrived
from order_writer.database import is_outage, retry_outages, said
from order_writer.member import member_settings, patiently
from order_writer.store import Overtaken
from order_writer.unit import Units
from stampede_schemas.identifiers import INSTANT_MS_MAX
from stampede_schemas.topics import ORDER_COMMANDS

READ_WAIT_S = 0.1

_BEGIN = """
INSERT INTO command_progress (partition, next_offset, topic_id)
SELECT unnest($1::int[]), 0, $2 ON CONFLICT (partition) DO NOTHING"""
_STORED = "SELECT partition, next_offset, topic_id FROM command_progress WHERE partition = ANY($1::int[])"
_log = logging.getLogger(__name__)


class CommandReader:
    """One member of the commands' group."""

    def __init__(
        self,
        kafka: str,
        group: str,
        instance: str,
        session_timeout_s: int,
        topic_id: str,
        units: Units,
        beat: Callable[[], None],
    ) -> None:
        self._kafka, self._topic_id, self._units, self._beat = kafka, topic_id, units, beat
        self._client = member_settings(f"{group}-commands", instance, session_timeout_s)
        self._next: dict[int, int] = {}  # by partition that is ours: the offset of its next record
        self._hole: tuple[int, int] | None = None
        self._failed: BaseException | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until asked to stop.

        Raises:
            LogBroken: part of the log is gone, or it is another one.
            KafkaException: this member may not go on (another process has its name).
        """
        self._stopping, self._loop = stopping, asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "commands") as thread:
            client = consumer(self._kafka, **self._client)
            client.subscribe([ORDER_COMMANDS.name], on_assign=self._take, on_revoke=self._revoked)
            try:
                while not stopping.is_set():
                    messages = await self._loop.run_in_executor(thread, _read, client)
                    self._beat()
                    if self._failed:
                        raise self._failed
                    if not await self._write(messages):
                        await self._loop.run_in_executor(thread, self._take, client, client.assignment())
                    elif messages:
                        _commit(client, self._next)
            finally:
                await self._loop.run_in_executor(thread, client.close)

    async def _write(self, messages: list[Message]) -> bool:
        """Apply the records; False when reading has to start again from the stored progress."""
        arrived: list[Arrived] = []
        moves: dict[int, tuple[int, int]] = {}
        for message in messages:
            if (error := message.error()) is not None:
                check_passing(error, ORDER_COMMANDS.name)
                continue
            it = _arrived(message)
            following = self._next.get(it.partition)
            if following is None or it.offset < following:
                continue  # fetched before the partition was taken or left: not ours, or known
            if it.offset > following:
                # Possibly a fetch from before a seek. If the log itself has this hole, it is there again next time.
                if self._hole == (it.partition, following):
                    raise LogBroken(
                        f"{ORDER_COMMANDS.name}/{it.partition} jumps from offset {following} to {it.offset}: "
                        "part of the log is gone"
                    )
                self._hole = (it.partition, following)
                return False
            arrived.append(it)
            moves[it.partition] = moves.get(it.partition, (following,))[0], it.offset + 1
            self._next[it.partition] = it.offset + 1
        if not arrived:
            return True
        try:
            async with self._units.open() as unit:
                await commands.apply(unit, moves, arrived)
        except Overtaken:
            _log.info("another writer moved commands of %s on: going to the stored progress", sorted(moves))
            return False
        except Exception as error:
            if not is_outage(error):
                raise
            _log.warning("commands were not applied: %s", said(error))
            return False
        return True

    # In the consumer's thread.

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("giving up commands of %s", sorted(partition.partition for partition in partitions))
        self._next = {}
        client.unassign()

    def _take(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Assign the partitions at their stored progress. What is wrong with the log is kept for `run` to raise."""
        try:
            wanted = [partition.partition for partition in partitions]
            found = asyncio.run_coroutine_threadsafe(self._stored(wanted), self._loop).result()
            patiently(partial(self._check_ends, found))
            client.assign([TopicPartition(ORDER_COMMANDS.name, n, at) for n, at in found.items()])
            self._next = found
        except Exception as error:
            self._failed = error
            client.assign([])

    def _check_ends(self, stored: dict[int, int]) -> None:
        free = consumer(self._kafka)
        try:
            for partition, at in stored.items():
                _, end = watermarks(free, ORDER_COMMANDS.name, partition)
                if at > end:
                    raise LogBroken(
                        f"{ORDER_COMMANDS.name}/{partition} ends at {end}, but it was applied up to {at} before: "
                        "it lost its tail"
                    )
        finally:
            free.close()

    async def _stored(self, partitions: list[int]) -> dict[int, int]:
        """The next offset of each partition, waiting for the database as long as it takes; empty when asked to stop."""

        async def read() -> list[Any]:
            async with self._units.pool.acquire() as connection, connection.transaction():
                await connection.execute(_BEGIN, sorted(partitions), self._topic_id)
                return await connection.fetch(_STORED, partitions)

        rows = await retry_outages(read, self._beat, self._stopping, "reading the progress of commands") or []
        for row in rows:
            if row["topic_id"] != self._topic_id:
                raise LogBroken(
                    f"topic {ORDER_COMMANDS.name} was made anew: Postgres holds what its predecessor said "
                    f"({row['topic_id']}, now {self._topic_id}). Use a fresh database, or restore the topic."
                )
        return {row["partition"]: row["next_offset"] for row in rows}


def _arrived(message: Message) -> Arrived:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    headers: Any = message.headers() or ()
    value: Any = message.value() or b""
    at = datetime.fromtimestamp(min(max(message.timestamp()[1], 0), INSTANT_MS_MAX) / 1000, UTC)
    return Arrived(value, partition, offset, at, [(name, each or b"") for name, each in headers])


def _read(client: Consumer) -> list[Message]:
    return client.consume(COMMANDS_PER_TRANSACTION_MAX, READ_WAIT_S)


def _commit(client: Consumer, reached: dict[int, int]) -> None:
    try:
        client.commit(offsets=[TopicPartition(ORDER_COMMANDS.name, n, at) for n, at in reached.items()])
    except KafkaException as error:
        _log.info("the group offset of commands was not committed: %s", error)
