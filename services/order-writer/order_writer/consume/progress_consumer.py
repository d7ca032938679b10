"""A consumer of one topic whose progress stands in Postgres: the transaction that applies the records moves it.

Progress is moved only from where a batch begins. After trouble of any kind the batch in hand is dropped, and reading
goes on from the stored progress once the database is back: Kafka is the buffer. The group offset is a hint and the lag
that autoscalers see, never the truth. A `BatchHandler` knows what differs from topic to topic.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import asyncpg
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from eventlog.kafka import check_passing, consumer, is_silence, place_of, resume, retry_on_election
from eventlog.reader import LogBroken, Progress
from order_writer.consume.quarantine import PartitionBroken
from order_writer.postgres.pool import (
    BACKOFF_S_MAX,
    Connection,
    Pool,
    describe,
    is_outage,
    retry_outages,
    wait_or_stop,
)
from order_writer.restore.restore_guard import committed_offsets
from order_writer.saga.decision_batch import Record
from order_writer.unit_of_work import columns
from service.tasks import TaskEnded
from stampede_schemas.identifiers import INSTANT_MS_MAX

RECORDS_PER_READ_MAX = 1_000
RECORDS_PER_SHARD = 50
IDLE_WAIT_S = 0.1  # how long a read waits for a first record
GATHER_WAIT_S = 0.004  # and then for more to join it
COMMIT_EVERY_S = 0.25
SILENT_WAIT_S = 1.0
UNREAD_LOOKS_MAX = 90  # looks are a second apart; a lost connection is noticed after 60
# A consumer that waits out a database outage stays in its group; the liveness probe finds one that is stuck.
POLL_PAUSE_MS_MAX = 3_600_000

_log = logging.getLogger(__name__)
B = TypeVar("B")  # the records of one transaction, as the handler holds them
InThread = Callable[..., Awaitable[Any]]


class Move(NamedTuple):
    """A partition's progress from `was` (its next offset before the batch) to `to`."""

    was: int
    to: Progress


class ProgressConflict(Exception):
    """Another consumer moved a partition on: this batch is dropped, and reading goes on from the stored progress."""


async def advance(connection: Connection, lock: str, update: str, rows: list[tuple[Any, ...]]) -> list[asyncpg.Record]:
    """Move progress, first in a transaction: a second consumer of the same records waits here, and then is too late.

    Args:
        lock: SQL that locks the progress of the partitions `$1`, in their order.
        update: SQL that moves it; its parameters are the columns of `rows`, of which the first is the partition. It
            returns a row for each partition that still was where the batch begins.

    Raises:
        ProgressConflict: nothing of this transaction may be committed.
    """
    await connection.execute(lock, [row[0] for row in rows])
    moved = await connection.fetch(update, *columns(rows, len(rows[0])))
    if len(moved) != len(rows):
        raise ProgressConflict
    return moved


class BatchHandler(Protocol[B]):
    """The meaning of one topic's records, and the table that holds how far they are applied."""

    topic: str
    shards_max: int  # at most so many transactions at once, each with partitions of its own
    begin: str  # SQL: an empty progress for those of the partitions `$1` that have none; `$2` is the topic's id
    stored: str  # SQL: the progress of the partitions `$1`, with `partition` and `topic_id`

    def progress_of(self, row: asyncpg.Record, committed: int, /) -> Progress:
        """Read a row of `stored`. Raises LogBroken if it may not be gone on from. `committed`: the group's offset."""

    def new_batch(self) -> B:
        """Nothing yet."""

    def is_full(self, batch: B) -> bool:
        """Whether the transaction is large enough."""

    def add(self, batch: B, progress: Progress, record: Record, /) -> Progress:
        """Add the record that is next after `progress`; the progress beyond it. Raises LogBroken: it cannot be read."""

    async def apply(self, batch: B, moves: Mapping[int, Move]) -> None:
        """Commit the batch's effects with the progress.

        Raises:
            ProgressConflict: another consumer was first; nothing was committed.
            PartitionBroken: this partition must not be applied any further.
        """


class ProgressConsumer(Generic[B]):
    """One member of a group."""

    def __init__(
        self,
        kafka: str,
        instance: str,
        session_timeout_s: int,
        pool: Pool,
        group: str,
        topic_id: str,
        handler: BatchHandler[B],
        heartbeat: Callable[[], None],
    ) -> None:
        self._kafka, self._pool, self._topic_id, self._heartbeat = kafka, pool, topic_id, heartbeat
        self._handler, self._topic = handler, handler.topic
        self._client = {
            "group.id": group,
            # A restart takes its partitions back at once instead of waiting for its former self's session to end.
            "group.instance.id": instance,
            "session.timeout.ms": session_timeout_s * 1000,
            "max.poll.interval.ms": POLL_PAUSE_MS_MAX,
        }
        self._progress: dict[int, Progress] = {}  # of the partitions that are read; replaced when they change
        self._suspect: dict[int, int] = {}
        self._stopped: set[int] = set()
        self._mine: list[int] = []
        self._wait_s = 0.0
        self._placed = True
        self._reached: dict[int, int] = {}
        self._committed_at = 0.0
        self._drained = False  # whether a read since the last look has emptied the client's queue
        self._unread: dict[int, tuple[int, int]] = {}  # next offset of a partition, and looks at which it stood there

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until asked to stop.

        Raises:
            LogBroken: part of the log is gone, it is another one, or it holds what this version cannot read.
            KafkaException: this member may not go on (another process has its name).
        """
        self._stopping = stopping
        # One thread owns the consumer: reading the next records overlaps with writing the last ones.
        with ThreadPoolExecutor(1, self._topic) as thread:
            in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
            client = consumer(self._kafka, **self._client)
            client.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)
            try:
                await self._consume(client, in_thread)
            finally:
                self._commit(client, last=True)
                await in_thread(client.close)

    async def _consume(self, client: Consumer, in_thread: InThread) -> None:
        reading = in_thread(_read, client)
        try:
            while not self._stopping.is_set():
                messages = await reading
                self._heartbeat()
                if not self._placed:  # what was read until now is dropped
                    await self._place(client, in_thread)
                    messages = []
                else:
                    self._drained |= len(messages) < RECORDS_PER_READ_MAX
                reading = in_thread(_read, client)
                if await self._write(messages):
                    self._commit(client)
                else:
                    self._placed = False
        finally:
            await reading

    def look_for_stalls(self, ends: Mapping[tuple[str, int], int]) -> None:
        """To be called each second, while Postgres answers, with the ends that Kafka has just told.

        librdkafka can leave a partition unread without a word. A look counts only if the client's queue was empty since
        the last one: what waits behind other records, behind Postgres or in a stopped partition is not stalled.

        Raises:
            TaskEnded: a partition of this member is not read any more.
        """
        drained, self._drained = self._drained and self._placed, False
        for n, at in self._progress.items():
            offset, looks = self._unread.get(n, (-1, 0))
            end = ends.get((self._topic, n), 0)
            stands = at.next_offset == offset and end > offset
            self._unread[n] = at.next_offset, (looks + drained if stands else 0)
            if self._unread[n][1] > UNREAD_LOOKS_MAX:
                raise TaskEnded(
                    f"{self._topic}/{n} ends at {end}, but nothing came from {offset} on for {UNREAD_LOOKS_MAX} s "
                    "while Kafka and Postgres answered: the client does not read it any more"
                )

    async def _place(self, client: Consumer, in_thread: InThread) -> None:
        """Go to the stored progress, however long it takes to learn it.

        Meanwhile nothing is fetched (Kafka is the buffer, not this process), but the consumer is polled: it stays in
        its group and learns of new owners.
        """
        while not self._placed and not self._stopping.is_set():
            self._heartbeat()
            try:
                await self._try_to_place(client, in_thread)
            except KafkaException as error:
                if not is_silence(error):
                    raise
                _log.warning("reading %s begins when Kafka answers: %s", self._topic, error.args[0].str())
                await wait_or_stop(self._stopping, SILENT_WAIT_S)

    async def _try_to_place(self, client: Consumer, in_thread: InThread) -> None:
        mine = self._mine
        wanted = [n for n in mine if n not in self._stopped]
        # Queried before Postgres is: no offset is committed to the group before Postgres has it.
        committed = await in_thread(retry_on_election, partial(committed_offsets, client, self._topic, wanted))
        reading = asyncio.create_task(self._stored(wanted, committed))
        try:
            await in_thread(self._hold, client)
            while not (await asyncio.wait({reading}, timeout=IDLE_WAIT_S))[0]:
                await in_thread(self._hold, client)
            stored = await reading
        finally:
            reading.cancel()
        self._reached |= {n: at.next_offset for n, at in stored.items() if at.next_offset < committed.get(n, 0)}
        if mine is self._mine:
            await in_thread(self._go_to, client, stored)

    async def _stored(self, partitions: list[int], committed: dict[int, int]) -> dict[int, Progress]:
        """The progress of each partition, waiting for the database as long as it takes; empty when asked to stop."""

        async def read() -> list[asyncpg.Record]:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(self._handler.begin, sorted(partitions), self._topic_id)
                return await connection.fetch(self._handler.stored, partitions)

        # A database may answer this query, and refuse each batch for a while.
        await wait_or_stop(self._stopping, self._wait_s)
        what = f"reading the progress of {self._topic}"
        stored: dict[int, Progress] = {}
        for row in await retry_outages(read, self._heartbeat, self._stopping, what) or []:
            if row["topic_id"] != self._topic_id:
                raise LogBroken(
                    f"topic {self._topic} was recreated: Postgres holds the content of its predecessor "
                    f"({row['topic_id']}, now {self._topic_id}). Use a fresh database, or restore the topic."
                )
            partition = row["partition"]
            stored[partition] = self._handler.progress_of(row, committed.get(partition, 0))
        return stored

    async def _write(self, messages: list[Message]) -> bool:
        """Apply the records; False when reading has to start again from the stored progress.

        In shards of partitions: while Postgres works for one, the next transaction of another is made ready. Few
        records are not worth two commits.
        """
        count = min(self._handler.shards_max, 1 + len(messages) // RECORDS_PER_SHARD)
        shards: list[list[Message]] = [[] for _ in range(count)]
        for message in messages:
            shards[(message.partition() or 0) % count].append(message)
        progress = self._progress  # the consumer's thread may exchange it meanwhile: then this one is dropped
        writing = [self._write_shard(shard, progress) for shard in shards if shard]
        written = await asyncio.gather(*writing, return_exceptions=True)
        for failed in (one for one in written if isinstance(one, BaseException)):
            raise failed
        return all(written)

    async def _write_shard(self, messages: list[Message], progress: dict[int, Progress]) -> bool:
        at = 0
        while at < len(messages):
            batch, moves = self._handler.new_batch(), dict[int, Move]()
            while at < len(messages) and not self._handler.is_full(batch):
                if not self._take_in(messages[at], batch, moves, progress):
                    return False
                at += 1
                await asyncio.sleep(0)  # for Postgres' answers to the other shards
            if moves and not await self._written(batch, moves):
                return False
        return True

    def _take_in(self, message: Message, batch: B, moves: dict[int, Move], progress: dict[int, Progress]) -> bool:
        """Add one record to the batch; False when it is not the next one: go to the stored progress."""
        if (error := message.error()) is not None:
            check_passing(error, self._topic)
            _log.info("Kafka: %s", error.str())
            return True
        record = _record(message)
        partition, offset, known = record.partition, record.offset, progress.get(record.partition)
        if known is None or offset < known.next_offset:
            return True  # fetched before the partition was taken or left: not ours, or known
        was = known.next_offset
        if offset > was:
            # Possibly a fetch from before a seek. If the log itself has this hole, it is there again next time.
            if self._suspect.get(partition) == was:
                raise LogBroken(
                    f"{self._topic}/{partition} jumps from offset {was} to {offset}: part of the log is gone"
                )
            self._suspect[partition] = was
            return False
        progress[partition] = self._handler.add(batch, known, record)
        began = moves[partition].was if partition in moves else was
        moves[partition] = Move(began, progress[partition])
        return True

    async def _written(self, batch: B, moves: dict[int, Move]) -> bool:
        try:
            await self._handler.apply(batch, moves)
        except ProgressConflict:
            _log.info("another consumer moved %s of %s on: going to the stored progress", sorted(moves), self._topic)
            return False
        except PartitionBroken as broken:
            # The others go on; the gauge of stopped partitions pages.
            _log.critical("partition %d stops: %s", broken.partition, broken)
            self._stopped.add(broken.partition)
            return False
        except Exception as error:
            if not is_outage(error):
                raise
            self._wait_s = min(max(1.0, self._wait_s * 2), BACKOFF_S_MAX)
            _log.warning(
                "records of %s were not applied, again in %.0f s: %s", self._topic, self._wait_s, describe(error)
            )
            return False
        self._wait_s = 0.0
        self._reached |= {partition: move.to.next_offset for partition, move in moves.items()}
        return True

    def _commit(self, client: Consumer, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._reached and (last or now - self._committed_at > COMMIT_EVERY_S):
            offsets = [TopicPartition(self._topic, p, n) for p, n in self._reached.items() if p in self._progress]
            self._reached, self._committed_at = {}, now
            try:
                if offsets:
                    client.commit(offsets=offsets)
            except KafkaException as error:
                _log.info("the group offset of %s was not committed: %s", self._topic, error)

    # In the consumer's thread.

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._stopped.clear()  # perhaps the cause was repaired: tried again
        self._mine, self._placed = [partition.partition for partition in partitions], False
        client.assign([])

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("giving up %s of %s", sorted(partition.partition for partition in partitions), self._topic)
        self._mine, self._progress = [], {}
        client.unassign()

    def _go_to(self, client: Consumer, stored: dict[int, Progress]) -> None:
        """Read on from the stored progress, once the log is found to continue it."""
        with closing(consumer(self._kafka)) as free:
            for partition, progress in stored.items():
                retry_on_election(partial(resume, free, self._topic, partition, progress))
        places = [TopicPartition(self._topic, n, progress.next_offset) for n, progress in stored.items()]
        client.assign(places)
        self._progress, self._placed, self._unread = stored, True, {}

    def _hold(self, client: Consumer) -> None:
        """Fetch nothing more, and follow the group.

        Not by `pause`: an `assign` and a `resume` that cross inside librdkafka leave a partition unread for ever
        (confluentinc/librdkafka#5591).
        """
        client.assign([])
        message = client.poll(0)
        if message is not None and (error := message.error()) is not None:
            check_passing(error, self._topic)


def _read(client: Consumer) -> list[Message]:
    first = client.consume(1, IDLE_WAIT_S)
    return first + client.consume(RECORDS_PER_READ_MAX - 1, GATHER_WAIT_S) if first else []


def _record(message: Message) -> Record:
    partition, offset = place_of(message)
    headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
    at = datetime.fromtimestamp(min(max(message.timestamp()[1], 0), INSTANT_MS_MAX) / 1000, UTC)
    kept = [(name, value or b"") for name, value in headers]
    return Record(message.value() or b"", partition, offset, at, kept)
