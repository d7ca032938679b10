"""The shell around the protocol: carries what it asks for to Kafka and Faust, and their answers back.

Everything runs on one event loop, except loads and reads of `requests`, which block in threads. It decides nothing.
"""

import asyncio
import gc
import logging
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from secrets import token_hex
from typing import Any, TypeVar, assert_never

from confluent_kafka import KafkaException, Message, Producer
from prometheus_client import CollectorRegistry

from eventlog.reader import LogBroken, Progress
from inventory.effects import (
    Acknowledge,
    DeadLetter,
    Effect,
    InFlightRecord,
    LoadTable,
    Produce,
    ReadRequests,
    SendDeadLetters,
    Stop,
    WriteCommit,
    WriteParts,
)
from inventory.loading import Record, load
from inventory.log_reader import LogReader
from inventory.metrics import Meters
from inventory.protocol import PartitionProcessor, SnapshotDue
from inventory.snapshot_fork import PackingFailed, forked
from stampede_schemas.dead_letters import Headers, letter
from stampede_schemas.decisions import Rejected, Released, Reserved
from stampede_schemas.identifiers import Millis, WriterEpoch
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, REQUESTS, STOCK_SNAPSHOTS, partition_of
from telemetry import names
from telemetry.tracing import Attribute, Kind, Tracing

BACKLOG_MAX = 2_000  # records of one partition taken from the stream and not decided; then the stream waits
TICK_S = 1.0
POLL_S = 0.001
READ_RETRY_S = 0.5
PARTS_IN_FLIGHT_MAX = 8

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Worker:
    """Runs the protocol of every partition that Faust assigns to this process."""

    def __init__(
        self,
        *,
        topic_ids: dict[str, str],
        reader: LogReader,
        producer: Producer,
        tracing: Tracing,
        registry: CollectorRegistry,
        snapshot_due: SnapshotDue,
        answered: Callable[[int, int, int], None],
        stop: Callable[[Stop], None],
    ) -> None:
        self.partitions: dict[int, PartitionProcessor] = {}
        self.owned: set[int] = set()
        self._topic_ids = topic_ids
        self._reader = reader
        self._producer = producer
        self._tracing = tracing
        self._meters = Meters(registry)
        self._snapshot_due = snapshot_due
        self._answered = answered
        self._stop = stop
        self._unacked: dict[int, deque[tuple[int, Any]]] = {}
        self._acked: dict[int, int] = {}
        self._sent_ns: dict[tuple[int, int], int] = {}
        self._outstanding = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self.kafka: bool | str = True  # whether it answers
        self.ticked_at = time.monotonic()  # when it last did
        self.advanced: dict[int, tuple[int, float]] = {}  # per partition: last offset answered, and since when

    # ---- from Faust

    def assigned(self, numbers: set[int]) -> None:
        """The group gave us exactly these partitions; each is loaded anew."""
        for number in self.owned - numbers:
            self._perform(number, self.partitions[number].revoked())
        self.owned = numbers
        self._meters.assigned.set(len(numbers))
        for number in sorted(numbers):
            self._unacked[number] = deque()
            self._acked[number] = -1
            protocol = self.partitions.get(number)
            if protocol is None:
                protocol = PartitionProcessor(
                    number, self._topic_ids, lambda: WriterEpoch(token_hex(16)), snapshot_due=self._snapshot_due
                )
                self.partitions[number] = protocol
            self._perform(number, protocol.assigned())

    def revoked(self, numbers: set[int]) -> None:
        """The group took these partitions away."""
        for number in numbers & self.owned:
            self._perform(number, self.partitions[number].revoked())
        self.owned -= numbers
        self._room.set()

    async def deliver(self, event: Any) -> None:
        """One record of `requests` from the stream. Waits while its partition has too much to do."""
        message = event.message
        number = message.partition
        while number in self.owned and self.partitions[number].backlog >= BACKLOG_MAX:
            self._room.clear()
            await self._room.wait()
        if number not in self.owned or self._leaving:
            return
        unacked = self._unacked[number]
        if message.offset <= self._acked[number]:
            event.ack()
        elif unacked and unacked[-1][0] >= message.offset:
            insort(unacked, (message.offset, event), key=lambda entry: entry[0])
        else:
            unacked.append((message.offset, event))
        record = Record(message.offset, message.value, Millis(round(message.timestamp * 1000)))
        self._perform(number, self.partitions[number].delivered(record))

    async def leave(self, wait_s: float) -> None:
        """Take no more requests, and wait until what was produced has been reported and acknowledged."""
        self._leaving = True
        deadline = time.monotonic() + wait_s
        while self._outstanding and time.monotonic() < deadline:  # noqa: ASYNC110 - reports are polled for as well
            await asyncio.sleep(POLL_S)

    # ---- loops

    async def poll(self) -> None:
        """Collect delivery reports: each millisecond while any is due, else asleep."""
        while True:
            if not self._outstanding:
                self._wake.clear()
                await self._wake.wait()
            self._producer.poll(0)
            await asyncio.sleep(POLL_S)

    async def tick(self) -> None:
        """Each second compare the end of `requests` with what is decided."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                ends = await asyncio.to_thread(self._reader.ends, REQUESTS.name, sorted(self.owned))
            except KafkaException as error:
                self.kafka = f"does not answer: {error.args[0].str()}"
                self.advanced.clear()  # a partition that decides nothing meanwhile is not to blame
                _log.warning("Kafka %s", self.kafka)
                continue
            self.kafka, self.ticked_at = True, time.monotonic()
            for number, (first, end) in ends.items():
                if number in self.owned:
                    self._tick_partition(number, first, end)

    def _tick_partition(self, number: int, first: int, end: int) -> None:
        protocol = self.partitions[number]
        self._perform(number, protocol.tick(first, end))
        done, now = protocol.confirmed.source_offset, time.monotonic()
        self._meters.lag.labels(number).set(max(0, end - 1 - done))
        if number not in self.advanced or done != self.advanced[number][0] or done >= end - 1:
            self.advanced[number] = (done, now)

    # ---- effects

    def _perform(self, number: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Produce(records):
                    self._produce(number, records)
                case Acknowledge(source_offset):
                    self._acknowledge(number, source_offset)
                case LoadTable(attempt, known):
                    self._spawn(self._load(number, attempt, known))
                case ReadRequests(attempt, start, end):
                    self._spawn(self._read(number, attempt, start, end))
                case SendDeadLetters(attempt, dead_letters):
                    self._send_dead_letters(number, attempt, dead_letters)
                case WriteParts(name, pack):
                    self._spawn(self._write_parts(number, name, forked(pack)))
                    self._perform(number, self.partitions[number].packed(name))
                case WriteCommit(value):
                    lost = partial(_log.warning, "a snapshot is lost: %s")
                    self._send(STOCK_SNAPSHOTS.name, number, value, lambda _offset: None, on_failure=lost)
                case Stop():
                    self._stop(effect)
                case _:
                    assert_never(effect)
        if not self._room.is_set():
            self._room.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stop(Stop(str(error) if isinstance(error, LogBroken) else repr(error)))

    def _send(
        self,
        topic: str,
        partition: int,
        value: bytes,
        on_ack: Callable[[int], None],
        key: bytes | None = None,
        headers: Headers = (),
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Produce a record. Without `on_failure` the process stops if it is not taken."""

        def report(error: Any, message: Message | None) -> None:
            self._outstanding -= 1
            offset = None if message is None else message.offset()  # one without bytes counts as false
            if error is None and offset is not None:
                on_ack(offset)
            elif on_failure:
                on_failure(str(error))
            else:
                self._stop(Stop(f"{topic}/{partition} did not take a record: {error}"))

        self._outstanding += 1
        self._wake.set()
        try:
            self._producer.produce(topic, value, key, partition=partition, on_delivery=report, headers=[*headers])
        except (KafkaException, BufferError) as error:
            report(error, None)

    def _produce(self, number: int, records: list[InFlightRecord]) -> None:
        now = time.time_ns()
        for record in records:
            self._sent_ns[number, record.source_offset] = now
            self._send(DECISIONS.name, number, record.value, partial(self._reported, number, record))

    def _reported(self, number: int, record: InFlightRecord, offset: int) -> None:
        protocol = self.partitions[number]
        self._perform(number, protocol.reported(record.source_offset, offset))
        sent = self._sent_ns.pop((number, record.source_offset))
        if protocol.confirmed.source_offset >= record.source_offset:
            self._observe(number, record, sent)

    def _observe(self, number: int, record: InFlightRecord, sent_ns: int) -> None:
        now = time.time_ns()
        self._meters.batch_s.observe((now - sent_ns) / 1e9)
        for kind, count in Counter(type(decision).__name__ for decision in record.decisions).items():
            self._meters.decisions.labels(kind).inc(count)
        self._trace(number, record, sent_ns, now)

    def _trace(self, number: int, record: InFlightRecord, start_ns: int, end_ns: int) -> None:
        """One span for the batch, linked to the sampled purchases in it, and one in each of their own traces."""
        sampled = [
            (decision, decision.traceparent)
            for decision in record.decisions
            if isinstance(decision, Reserved | Rejected | Released)
            and decision.traceparent is not None
            and self._tracing.sampled(decision.traceparent)
        ]
        if not sampled:
            return
        where: dict[str, Attribute] = {
            names.TOPIC: REQUESTS.name,
            names.PARTITION: number,
            names.OFFSET: record.source_offset,
        }
        self._tracing.record(
            names.SPAN_PROCESS_REQUESTS,
            start_ns=start_ns,
            end_ns=end_ns,
            kind=Kind.CONSUMER,
            attributes={**where, names.BATCH_SIZE: len(record.decisions)},
            links=[parent for _, parent in sampled],
        )
        for decision, parent in sampled:
            about: dict[str, Attribute] = {
                names.DECISION: type(decision).__name__,
                names.PURCHASE_ID: decision.purchase_id,
            }
            if not isinstance(decision, Reserved):
                about[names.REASON] = decision.reason
            self._tracing.record(
                names.SPAN_DECIDE, start_ns=start_ns, end_ns=end_ns, parent=parent, attributes={**where, **about}
            )

    def _acknowledge(self, number: int, source_offset: int) -> None:
        """Ack what Faust delivered up to here, and tell it of what it never delivered but is answered all the same."""
        unacked = self._unacked.get(number)
        if unacked is None or source_offset <= self._acked[number]:
            return
        while unacked and unacked[0][0] <= source_offset:
            _, event = unacked.popleft()
            event.ack()
        self._answered(number, self._acked[number] + 1, source_offset)
        self._acked[number] = source_offset

    def _send_dead_letters(self, number: int, attempt: int, dead_letters: list[DeadLetter]) -> None:
        waiting = len(dead_letters)

        def acknowledged(_offset: int) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._perform(number, self.partitions[number].dead_letters_sent(attempt))

        for dead_letter in dead_letters:
            self._meters.dead_letters.labels(dead_letter.reason).inc()
            position = f"{REQUESTS.name}/{number}/{dead_letter.source_offset}/{dead_letter.index}"
            about = {
                "reason": dead_letter.reason,
                "topic": REQUESTS.name,
                "partition": number,
                "offset": dead_letter.source_offset,
                "index": dead_letter.index,
                "first_seen_ms": time.time_ns() // 1_000_000,
            }
            value, headers = letter(dead_letter.content, [(name, str(it).encode()) for name, it in about.items()])
            self._send(DEAD_LETTERS.name, partition_of(REQUESTS.name), value, acknowledged, position.encode(), headers)

    async def _write_parts(self, number: int, name: str, packing: AsyncIterator[bytes]) -> None:
        """Send a snapshot's parts as they are packed. Whatever goes wrong costs the snapshot, and nothing else."""
        offsets: list[int] = []
        trouble: list[str] = []
        room = asyncio.Semaphore(PARTS_IN_FLIGHT_MAX)

        def acknowledged(offset: int) -> None:
            offsets.append(offset)
            room.release()

        def failed(error: str) -> None:
            trouble.append(error)
            room.release()

        try:
            async for value in packing:
                await room.acquire()
                if trouble:
                    room.release()
                else:
                    self._send(STOCK_SNAPSHOTS.name, number, value, acknowledged, on_failure=failed)
            for _ in range(PARTS_IN_FLIGHT_MAX):
                await room.acquire()
        except PackingFailed as error:
            trouble.append(str(error))
        if trouble:
            _log.warning("partition %d: no snapshot this time: %s", number, trouble[0])
        self._perform(number, self.partitions[number].parts_written(name, None if trouble else offsets))

    # ---- reading, in threads

    async def _load(self, number: int, attempt: int, known: Progress) -> None:
        began = time.monotonic()
        loaded = await _retry_on_kafka_error(
            lambda: self._reader.finish(number, load(number, self._topic_ids, known=known))
        )
        gc.freeze()  # a full collection over a large table stops the worker for 0.1 to 0.3 s, and finds nothing
        self._meters.load_s.observe(time.monotonic() - began)
        self._perform(number, self.partitions[number].loaded(attempt, loaded, time.monotonic()))

    async def _read(self, number: int, attempt: int, start: int, end: int) -> None:
        _log.info("partition %d: reading requests [%d, %d) that the stream did not deliver", number, start, end)
        records = await _retry_on_kafka_error(lambda: self._reader.read(REQUESTS.name, number, start, end))
        self._perform(number, self.partitions[number].requests_read(attempt, records))


async def _retry_on_kafka_error(read: Callable[[], _T]) -> _T:
    """Read in a thread, and again after an error of Kafka, however long it takes; no thread is held between two."""
    while True:
        try:
            return await asyncio.to_thread(read)
        except KafkaException as error:
            _log.info("Kafka could not be read, again in %.1f s: %s", READ_RETRY_S, error.args[0].str())
            await asyncio.sleep(READ_RETRY_S)
