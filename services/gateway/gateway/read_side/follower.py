"""Follows `decisions` and `orders` and feeds the projection; wakes the requests that wait for it.

A thread waits on Kafka (it wakes at once when something comes and costs nothing while nothing does); everything is
applied on the event loop, so the projection needs no locks. No consumer group: every gateway reads everything.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future as ThreadFuture
from functools import partial

from confluent_kafka import Consumer, Message, TopicPartition
from msgspec import DecodeError

from eventlog.kafka import check_passing, consumer, place_of, resume, watermarks
from eventlog.reader import CountingReader, Fenced, Progress
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.freshness import EndQueries, Freshness
from gateway.read_side.projection import Projection
from service.tasks import in_thread
from stampede_schemas.codec import decode_decisions, decode_order_event
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import DECISIONS, ORDERS, REQUESTS

RECORDS_PER_TURN_MAX = 20  # each may carry 500 decisions: the loop must not be held longer than some milliseconds
PROBE_S = 0.25
AT_END_S_MAX = 1.0
WATCHERS_MAX = 50_000
UNWATCHED_S = 0.25
_log = logging.getLogger(__name__)


class Waiters:
    """Waits for a key to change. Bounded: beyond the limit a waiter is not woken, but checks again by itself."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._count = 0

    async def changed(self, key: str, seconds: float) -> bool:
        """True when `key` changed within `seconds`."""
        if seconds <= 0 or self._count >= WATCHERS_MAX:
            await asyncio.sleep(min(max(seconds, 0), UNWATCHED_S))  # never at once: callers ask in a loop
            return False
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(future)
        self._count += 1
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._count -= 1
            if (others := self._waiting.get(key)) is not None:
                others.discard(future)
                if not others:
                    del self._waiting[key]
        return True

    def wake(self, keys: list[str]) -> None:
        """These keys changed."""
        for key in keys:
            for future in self._waiting.pop(key, ()):
                if not future.done():
                    future.set_result(None)


class Follower:
    """One consumer over all partitions of both topics."""

    def __init__(
        self, kafka: str, projection: Projection, waiters: Waiters, clock: BrokerClock, ends: EndQueries
    ) -> None:
        self._kafka, self._projection, self._waiters, self._clock = kafka, projection, waiters, clock
        self._ends = ends
        self.freshness = Freshness(partial(ends.ends, REQUESTS.name), self._tail_lost)
        self._readers: dict[int, CountingReader] = {}
        self._target: dict[int, tuple[float, int]] = {}  # partition -> (queried at, end of decisions then)
        self._at_end: dict[int, float] = {}  # partition -> when we last knew to have seen everything
        self._consumer: Consumer | None = None
        self._orders: list[TopicPartition] = []
        self._stop = threading.Event()
        self.fenced = 0
        self.lost = 0  # purchases that the log had acknowledged here, and lost
        self.caught_up = asyncio.Event()  # every partition was read to its end once

    async def open(self) -> None:
        """Connect and note where `orders` ends, before the caller reads the rows that it will be applied to."""
        self._consumer = consumer(self._kafka)
        self._orders = await asyncio.to_thread(self._order_ends, self._consumer)

    async def start(self, progress: Mapping[int, Progress]) -> None:
        """Go on from `progress` (partitions without one: from the beginning).

        Raises:
            LogBroken: the log is not the one that `progress` was made of.
        """
        assert self._consumer is not None
        self._readers = await asyncio.to_thread(self._resume, self._consumer, progress)
        for partition, reader in self._readers.items():
            self._projection.memory.start_from(partition, reader.progress.source_offset)
            self.freshness.applied(partition, reader.progress.source_offset)
        places = [TopicPartition(DECISIONS.name, p, r.progress.next_offset) for p, r in self._readers.items()]
        self._consumer.assign(places + self._orders)

    async def run(self) -> None:
        """Apply what comes, from where `start` began, until cancelled.

        Raises:
            LogBroken: the log is not what it was.
        """
        assert self._consumer is not None
        await in_thread(partial(self._follow, self._consumer, asyncio.get_running_loop()), self._stop.set)

    async def close(self) -> None:
        """Leave Kafka."""
        if self._consumer is not None:
            await asyncio.to_thread(self._consumer.close)

    def at_end(self, partition: int) -> bool:
        """Whether all decisions of a second ago are known here."""
        return self._since_end(partition) < AT_END_S_MAX

    def _since_end(self, partition: int) -> float:
        return time.monotonic() - self._at_end.get(partition, float("-inf"))

    @property
    def lag(self) -> int:
        """Decisions records not applied yet, as of the last probe."""
        return sum(max(0, end - self._readers[p].progress.next_offset) for p, (_, end) in self._target.items())

    def _order_ends(self, client: Consumer) -> list[TopicPartition]:
        return [TopicPartition(ORDERS.name, p, watermarks(client, ORDERS.name, p)[1]) for p in range(ORDERS.partitions)]

    def _resume(self, client: Consumer, progress: Mapping[int, Progress]) -> dict[int, CountingReader]:
        return {
            partition: resume(client, DECISIONS.name, partition, progress.get(partition, Progress()))
            for partition in range(DECISIONS.partitions)
        }

    def _follow(self, client: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            first = client.poll(0.2)
            if first is None:
                continue
            messages = [first, *client.consume(RECORDS_PER_TURN_MAX - 1, timeout=0)]
            done: ThreadFuture[None] = ThreadFuture()
            loop.call_soon_threadsafe(self._apply, messages, done)
            done.result()

    def _apply(self, messages: list[Message], done: ThreadFuture[None]) -> None:
        try:
            for message in messages:
                if (error := message.error()) is not None:
                    check_passing(error, f"{message.topic()}/{message.partition()}")
                    _log.warning("kafka: %s", error.str())
                elif message.topic() == ORDERS.name:
                    self._order(message.value())
                else:
                    self._decisions(message)
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    def _order(self, value: bytes | None) -> None:
        try:
            event = decode_order_event(value or b"")
        except DecodeError:
            _log.error("an event of %s cannot be read; the rows in Postgres are read instead", ORDERS.name)
            return
        self._waiters.wake(self._projection.fold_order(event))

    def _decisions(self, message: Message) -> None:
        partition, offset = place_of(message)
        envelope = self._readers[partition].read(offset, message.value())
        if isinstance(envelope, Fenced):
            self.fenced += 1
        else:
            decisions, source_offset = decode_decisions(envelope), envelope.source_offset
            self._clock.saw(message.timestamp()[1], self._since_end(partition))
            changed = self._projection.fold(partition, source_offset, decisions, envelope.appended_at_ms)
            self._note_lost(partition, self._projection.memory.passed(partition, source_offset))
            self.freshness.applied(partition, source_offset)
            self._waiters.wake(changed)
        self._note_end(partition)

    def _tail_lost(self, partition: int, end: int, stood: int) -> None:
        """`requests` ends below what was acknowledged or applied here: power loss, or a restored disk."""
        _log.error("%s/%d ends at %d, but stood at %d: it lost its tail", REQUESTS.name, partition, end, stood)
        self._note_lost(partition, self._projection.memory.tail_lost(partition, end, stood))

    def _note_lost(self, partition: int, lost: list[PurchaseId]) -> None:
        if lost:
            self.lost += len(lost)
            _log.error("%s/%d lost %d acknowledged purchases", REQUESTS.name, partition, len(lost))
            self._waiters.wake(list(lost))

    def _note_end(self, partition: int) -> None:
        target = self._target.get(partition)
        if target is not None and self._readers[partition].progress.next_offset >= target[1]:
            self._at_end[partition] = target[0]
            if len(self._at_end) == DECISIONS.partitions:
                self.caught_up.set()

    async def probe(self) -> None:
        """Query where `decisions` ends, over and over: silence alone may be an idle log or a lost broker."""
        while True:
            queried_at = time.monotonic()
            for partition, end in (await self._ends.ends(DECISIONS.name, range(DECISIONS.partitions))).items():
                # An end not reached yet is kept while it is young: under a steady stream the newest is never met.
                reached = self._target.get(partition, (0.0, 0))
                missing = self._readers[partition].progress.next_offset < reached[1]
                if not (missing and queried_at - reached[0] < AT_END_S_MAX):
                    self._target[partition] = (queried_at, end)
                    self._note_end(partition)
            await asyncio.sleep(PROBE_S)
