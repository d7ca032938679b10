"""The consumer of `decisions`: batch by batch into Postgres, from wherever the progress in Postgres says.

Kafka is the buffer: whatever goes wrong with the database, the batch in hand is dropped and reading goes on from the
stored progress once the database is back. The group offset is a hint and the lag that autoscalers see, never the truth.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from eventlog.kafka import check_passing, consumer, resume
from eventlog.reader import CountingReader, LogBroken, Progress, Void
from order_writer import store
from order_writer.database import BACKOFF_S_MAX, is_outage, pause, retry_outages, said
from order_writer.domain import Batch, Row
from order_writer.member import member_settings, patiently
from order_writer.metrics import Metrics
from order_writer.recovery import Known, check_known, committed_offsets
from order_writer.row_errors import PartitionBroken, Source, is_row_error
from order_writer.spans import Spans
from order_writer.store import At, Move, Overtaken
from order_writer.unit import Units
from stampede_schemas.codec import decode_decisions
from stampede_schemas.topics import DECISIONS

RECORDS_PER_READ_MAX = 1_000
ORDERS_PER_TRANSACTION_MAX = 2_000
LANES_MAX = 2
RECORDS_PER_LANE = 50
IDLE_WAIT_S = 0.1  # how long a read waits for a first record
GATHER_WAIT_S = 0.004  # and then for more to join it
COMMIT_EVERY_S = 0.25
LOOK_BACK_EVERY_S = 1.0  # well within a sweeper's grace: nothing expires by an older database

_PROGRESS = "SELECT partition, next_offset, source_offset, load, anchor, topic_id, recovered_to FROM progress"
STOP = "UPDATE progress SET stopped = $2 WHERE partition = $1"
_BEGIN = """
INSERT INTO progress (partition, next_offset, source_offset, load, anchor, topic_id)
SELECT unnest($1::int[]), 0, -1, '', -1, $2 ON CONFLICT (partition) DO NOTHING"""
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What goes into one transaction: the records' effect, where they move the progress, and themselves."""

    batch: Batch
    moves: dict[int, Move]
    sources: dict[At, Message]
    started_ns: int


class Writer:
    """One member of the group."""

    def __init__(
        self,
        kafka: str,
        group: str,
        instance: str,
        session_timeout_s: int,
        topic_id: str,
        units: Units,
        known: Known,
        metrics: Metrics,
        spans: Spans,
        beat: Callable[[], None],
        *,
        confirm: bool,
    ) -> None:
        self._kafka, self._topic_id, self._units, self._known = kafka, topic_id, units, known
        self._metrics, self._spans, self._beat, self._confirm = metrics, spans, beat, confirm
        self._client = member_settings(group, instance, session_timeout_s)
        self.readers: dict[int, CountingReader] = {}
        self._suspect: dict[int, int] = {}
        self._stopped: set[int] = set()
        self._mine: list[int] = []
        self._wait_s = 0.0
        self._placed = True
        self._reached: dict[int, int] = {}
        self._committed_at = self._looked_at = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until asked to stop.

        Raises:
            LogBroken: part of the log is gone, or it holds what this version cannot read.
            KafkaException: this member may not go on (another process has its name).
        """
        self._stopping, self._loop = stopping, asyncio.get_running_loop()
        # One thread owns the consumer: reading the next records overlaps with writing the last ones.
        with ThreadPoolExecutor(1, "decisions") as thread:
            client = consumer(self._kafka, **self._client)
            client.subscribe([DECISIONS.name], on_assign=self._assigned, on_revoke=self._revoked)
            try:
                await self._consume(client, thread)
            finally:
                self._commit(client, last=True)
                await self._loop.run_in_executor(thread, client.close)

    async def _consume(self, client: Consumer, thread: ThreadPoolExecutor) -> None:
        reading = self._loop.run_in_executor(thread, _read, client)
        try:
            while not self._stopping.is_set():
                messages = await reading
                self._beat()
                await self._look_back()
                if not self._placed:  # what was read until now is dropped
                    await self._place(client, thread)
                    messages = []
                reading = self._loop.run_in_executor(thread, _read, client)
                if await self._write(messages):
                    self._commit(client)
                else:
                    self._placed = False
        finally:
            await reading

    async def _place(self, client: Consumer, thread: ThreadPoolExecutor) -> None:
        """Go to the stored progress, however long it takes to learn it.

        Meanwhile nothing is fetched (Kafka is the buffer, not this process), but the consumer is polled: it stays in
        its group and hears of new owners.
        """
        while not self._placed and not self._stopping.is_set():
            mine = self._mine
            wanted = [n for n in mine if n not in self._stopped]
            # Asked before Postgres is: nobody commits to the group what Postgres does not have.
            asked = partial(committed_offsets, client, wanted)
            committed = await self._loop.run_in_executor(thread, patiently, asked)
            asking = asyncio.create_task(self._stored(wanted, committed))
            try:
                await self._loop.run_in_executor(thread, _hold, client)
                while not (await asyncio.wait({asking}, timeout=IDLE_WAIT_S))[0]:
                    await self._loop.run_in_executor(thread, _hold, client)
                stored = await asking
            finally:
                asking.cancel()
            self._reached |= {n: at.next_offset for n, at in stored.items() if at.next_offset < committed.get(n, 0)}
            if mine is self._mine:
                await self._loop.run_in_executor(thread, self._go_to, client, stored)

    async def _look_back(self) -> None:
        """Now and then: a database that was exchanged for an older one under a running writer must not be acted on.

        Raises:
            LogBroken: it was.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_BACK_EVERY_S:
            return
        self._looked_at = now
        try:
            async with asyncio.timeout(LOOK_BACK_EVERY_S), self._units.pool.acquire() as connection:
                await self._known.look(connection)
        except Exception as error:
            if not is_outage(error):
                raise

    async def _write(self, messages: list[Message]) -> bool:
        """Take the records in and commit them; False when reading has to start again from the stored progress.

        In lanes with partitions of their own: while Postgres works for one, the next transaction of another is made
        ready. Few records are not worth two commits.
        """
        count = min(LANES_MAX, 1 + len(messages) // RECORDS_PER_LANE)
        lanes: list[list[Message]] = [[] for _ in range(count)]
        for message in messages:
            lanes[(message.partition() or 0) % count].append(message)
        written = await asyncio.gather(*(self._write_lane(lane) for lane in lanes if lane), return_exceptions=True)
        for failed in (one for one in written if isinstance(one, BaseException)):
            raise failed
        return all(written)

    async def _write_lane(self, messages: list[Message]) -> bool:
        at = 0
        while at < len(messages):
            part = Part(Batch(), {}, {}, time.time_ns())
            while at < len(messages) and part.batch.decisions < ORDERS_PER_TRANSACTION_MAX:
                if not self._take_in(messages[at], part):
                    return False
                at += 1
                await asyncio.sleep(0)  # for Postgres' answers to the other lanes
            if part.moves and not await self._written(part):
                return False
        return True

    async def _written(self, part: Part) -> bool:
        try:
            stored = await self._store(part)
        except Overtaken:
            _log.info("another writer moved partitions %s on: going to the stored progress", sorted(part.moves))
            return False
        except PartitionBroken as broken:
            await self._stop(broken)
            return False
        except Exception as error:
            if not is_outage(error):
                raise
            self._wait_s = min(max(1.0, self._wait_s * 2), BACKOFF_S_MAX)
            _log.warning("a batch was not written, again in %.0f s: %s", self._wait_s, said(error))
            return False
        self._wait_s = 0.0
        reached = {partition: move.to.next_offset for partition, move in part.moves.items()}
        self._reached |= reached
        self._known.note(reached)
        self._measure(stored, part.started_ns)
        self._spans.batch(stored, part.batch.decisions, part.started_ns)
        return True

    async def _store(self, part: Part) -> list[Row]:
        """Write one batch; if Postgres refuses something in it, once more, in parts."""
        try:
            async with self._units.open() as unit:
                return await store.apply(unit, part.moves, part.batch, confirm=self._confirm)
        except Exception as error:
            if not is_row_error(error):
                raise
            _log.warning("a batch holds what Postgres will never take, writing it in parts: %s", said(error))
        async with self._units.open() as unit:
            sources = _sources(part.sources)
            return await store.apply(unit, part.moves, part.batch, confirm=self._confirm, sources=sources)

    async def _stop(self, broken: PartitionBroken) -> None:
        """Apply nothing more of this partition; the others go on, and the gauge that is set here pages."""
        _log.critical("partition %d stops: %s", broken.partition, broken)
        self._stopped.add(broken.partition)
        work = partial(self._units.pool.execute, STOP, broken.partition, str(broken))
        await retry_outages(work, self._beat, self._stopping, "stopping a partition")

    def _take_in(self, message: Message, part: Part) -> bool:
        """Add one record to the part; False when it is not the next one and the partition has to be read anew."""
        if (error := message.error()) is not None:
            check_passing(error, DECISIONS.name)
            _log.info("Kafka: %s", error.str())
            return True
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        reader = self.readers.get(partition)
        if reader is None or offset < reader.progress.next_offset:
            return True  # fetched before the partition was taken or left: not ours, or known
        was = reader.progress.next_offset
        if offset > was:
            # Possibly a fetch from before a seek. If the log itself has this hole, it is there again next time.
            if self._suspect.get(partition) == was:
                reader.read(offset, None)
            self._suspect[partition] = was
            return False
        read = reader.read(offset, message.value())
        began = part.moves[partition].was if partition in part.moves else was
        part.moves[partition] = Move(began, reader.progress)
        if isinstance(read, Void):
            self._metrics.void.labels(read.reason).inc()
            if read.reason == "jump":
                _log.error("a decisions record was lost on its way: %s/%d at %d", DECISIONS.name, partition, offset)
            return True
        try:
            part.batch.add(partition, read.source_offset, decode_decisions(read))
            part.sources[partition, read.source_offset] = message
        except msgspec.DecodeError as error:
            raise LogBroken(
                f"{DECISIONS.name}/{partition} holds at {offset} what this version cannot read ({error}): "
                "upgrade the order-writer before the inventory"
            ) from None
        return True

    def _measure(self, stored: list[Row], started: int) -> None:
        self._metrics.batch_seconds.observe((time.time_ns() - started) / 1e9)
        for status, count in Counter(row.status for row in stored).items():
            self._metrics.orders.labels(status).inc(count)

    def _commit(self, client: Consumer, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._reached and (last or now - self._committed_at > COMMIT_EVERY_S):
            offsets = [TopicPartition(DECISIONS.name, p, n) for p, n in self._reached.items() if p in self.readers]
            self._reached, self._committed_at = {}, now
            try:
                if offsets:
                    client.commit(offsets=offsets)
            except KafkaException as error:
                _log.info("the group offset was not committed: %s", error)

    # In the consumer's thread.

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._stopped.clear()  # perhaps somebody has seen to it: tried anew
        self._mine, self._placed = [partition.partition for partition in partitions], False
        client.assign([])

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("giving up partitions %s", sorted(partition.partition for partition in partitions))
        self._mine, self.readers = [], {}
        client.unassign()

    def _go_to(self, client: Consumer, stored: dict[int, Progress]) -> None:
        readers = patiently(partial(self._resume, stored))
        places = [TopicPartition(DECISIONS.name, n, reader.progress.next_offset) for n, reader in readers.items()]
        client.assign(places)
        client.resume(places)
        self.readers, self._placed = readers, True

    def _resume(self, stored: dict[int, Progress]) -> dict[int, CountingReader]:
        free = consumer(self._kafka)
        try:
            return {n: resume(free, DECISIONS.name, n, progress) for n, progress in stored.items()}
        finally:
            free.close()

    async def _stored(self, partitions: list[int], committed: dict[int, int]) -> dict[int, Progress]:
        """The progress of each partition, waiting for the database as long as it takes; empty when asked to stop."""

        async def read() -> list[Any]:
            async with self._units.pool.acquire() as connection, connection.transaction():
                await connection.execute(_BEGIN, sorted(partitions), self._topic_id)
                return await connection.fetch(f"{_PROGRESS} WHERE partition = ANY($1::int[])", partitions)

        await pause(self._stopping, self._wait_s)  # a database may answer this, and refuse each batch for a while
        rows = await retry_outages(read, self._beat, self._stopping, "reading the progress") or []
        for row in rows:
            if row["topic_id"] != self._topic_id:
                raise LogBroken(
                    f"topic {DECISIONS.name} was made anew: Postgres holds the orders of its predecessor "
                    f"({row['topic_id']}, now {self._topic_id}). Use a fresh database, or restore the topic."
                )
            partition, known = row["partition"], max(row["next_offset"], row["recovered_to"] or 0)
            check_known(partition, known, max(committed.get(partition, 0), self._known[partition]))
        return {
            row["partition"]: Progress(row["next_offset"], row["source_offset"], row["load"], row["anchor"])
            for row in rows
        }


def _sources(messages: dict[At, Message]) -> dict[At, Source]:
    """The records as dead letters keep them."""
    found: dict[At, Source] = {}
    for at, message in messages.items():
        offset, headers = message.offset(), cast(list[tuple[str, bytes | None]] | None, message.headers())
        assert offset is not None
        found[at] = Source(
            at[0], offset, message.value() or b"", [(name, value or b"") for name, value in headers or ()]
        )
    return found


def _read(client: Consumer) -> list[Message]:
    first = client.consume(1, IDLE_WAIT_S)
    return first + client.consume(RECORDS_PER_READ_MAX - 1, GATHER_WAIT_S) if first else []


def _hold(client: Consumer) -> None:
    """Fetch nothing more, drop what comes all the same, and do what the group asks."""
    client.pause(client.assignment())
    message = client.poll(0)
    if message is not None and (error := message.error()) is not None:
        check_passing(error, DECISIONS.name)
