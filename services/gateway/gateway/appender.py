"""From admitted requests to acknowledged ones: each tick is one limiter call and one record per partition.

The first request goes at once; while records are in flight, the next ones gather for TICK_S. This is the one place
where a purchase is held back after it was found well-formed: by the limits, by the door, by a full queue. Must not
know HTTP beyond the problems it answers with.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Protocol

from confluent_kafka import KafkaError, Message, Producer

from gateway import problems
from gateway.metrics import Metrics
from gateway.problems import Problem
from gateway.tail import BrokerClock
from ratelimit.limiter import BATCH_MAX, Subject, Verdict
from stampede_schemas.codec import RECORD_BYTES_MAX, REQUESTS_PER_RECORD_MAX, encode_requests
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import AnyRequest
from stampede_schemas.topics import REQUESTS, partition_of

TICK_S = 0.003
POLL_S = 0.001
WAITING_MAX = 5_000
IN_FLIGHT_MAX = 20_000
WAIT_S_MAX = 1.0  # a request not even asked about by then is refused: its buyer may come back, nothing was logged
STUCK_S_MAX = 2.0
DRAIN_S_MAX = 6.0
_log = logging.getLogger(__name__)
_partition_of = lru_cache(maxsize=10_000)(partition_of)  # a sale is a few products


class Limits(Protocol):
    """Judges a tick's requests in one call, one verdict each, and never raises. Claims will be asked here too."""

    async def check(self, batch: Sequence[Subject]) -> list[Verdict]:
        """One verdict per subject, in order; at most BATCH_MAX subjects."""
        ...


class Door(Protocol):
    """Says no where the answer is certain without the log."""

    async def refusals(self, requests: list[AnyRequest]) -> list[Problem | None]:
        """One answer per request, in order; None lets it pass."""
        ...


Appended = Position
Answer = Appended | Problem


class Waiting:
    """A request on its way to the log; `done` gets its position or the problem. Without `subject`: an operator's."""

    __slots__ = ("done", "entered", "partition", "request", "subject")

    def __init__(self, request: AnyRequest, subject: Subject | None, done: "asyncio.Future[Answer]") -> None:
        self.request, self.subject, self.done = request, subject, done
        self.partition = _partition_of(request.product_id)
        self.entered = time.monotonic()

    def answer(self, answer: Answer) -> None:
        """Tell the caller, unless it is gone."""
        if not self.done.done():
            self.done.set_result(answer)


class Appender:
    """Owns the producer's delivery reports. `run` must be running for anything to happen."""

    def __init__(self, producer: Producer, limits: Limits, door: Door, clock: BrokerClock, metrics: Metrics) -> None:
        self._producer, self._limits, self._door, self._clock, self._metrics = producer, limits, door, clock, metrics
        self._waiting: list[Waiting] = []
        self._in_flight: dict[int, tuple[float, list[Waiting]]] = {}  # record -> when it was handed over, what is in it
        self._records = 0
        self._requests_in_flight = 0
        self._arrived = asyncio.Event()
        self._sent = asyncio.Event()
        self._failed_at: float | None = None

    @property
    def full(self) -> bool:
        """Whether another request would have to be refused."""
        return len(self._waiting) >= WAITING_MAX or self._requests_in_flight >= IN_FLIGHT_MAX

    @property
    def healthy(self) -> bool | str:
        """True, or what is wrong with getting things into the log."""
        now = time.monotonic()
        if self._in_flight and now - next(iter(self._in_flight.values()))[0] > STUCK_S_MAX:
            return f"the log has not acknowledged a record for {STUCK_S_MAX:.0f} s"
        if self._failed_at is not None and now - self._failed_at < STUCK_S_MAX:
            return "the log did not take the latest record"
        return True

    async def append(self, request: AnyRequest, subject: Subject | None) -> Answer:
        """Where the request stands in the log, acknowledged, or why it is not there (or not known to be)."""
        if subject is not None and self.full:
            return overloaded()
        waiting = Waiting(request, subject, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.done

    async def run(self) -> None:
        """Tick until cancelled."""
        poller = asyncio.create_task(self._poll(), name="poll the producer")
        try:
            while True:
                await self._arrived.wait()
                if self._in_flight:
                    await asyncio.sleep(TICK_S)
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                if not self._waiting:
                    self._arrived.clear()
                await self._tick(batch)
        finally:
            poller.cancel()

    async def drain(self) -> None:
        """Wait until nothing is waiting or in flight, for at most DRAIN_S_MAX."""
        unanswered = [w.done for w in self._waiting] + [w.done for _, group in self._in_flight.values() for w in group]
        if unanswered:
            await asyncio.wait(unanswered, timeout=DRAIN_S_MAX)

    async def _tick(self, batch: list[Waiting]) -> None:
        self._metrics.tick.observe(len(batch))
        self._metrics.waiting.set(len(self._waiting))
        try:
            passed = await self._judge(batch)
            by_partition: dict[int, list[Waiting]] = {}
            for waiting in passed:
                by_partition.setdefault(waiting.partition, []).append(waiting)
            for partition, group in by_partition.items():
                for start in range(0, len(group), REQUESTS_PER_RECORD_MAX):
                    self._produce(partition, group[start : start + REQUESTS_PER_RECORD_MAX])
        except Exception:  # one tick's bug must not end the gateway: its requests are told, the next tick goes on
            _log.exception("a tick failed")
            for waiting in batch:
                waiting.answer(Problem(problems.INTERNAL, "The gateway failed; send the same key again."))

    async def _judge(self, batch: list[Waiting]) -> list[Waiting]:
        now = time.monotonic()
        passed = [waiting for waiting in batch if waiting.subject is None]
        asked: list[Waiting] = []
        for waiting in batch:
            if waiting.subject is not None:
                if now - waiting.entered > WAIT_S_MAX:
                    waiting.answer(overloaded())
                else:
                    asked.append(waiting)
        verdicts = await self._limits.check([waiting.subject for waiting in asked if waiting.subject is not None])
        allowed: list[Waiting] = []
        for waiting, verdict in zip(asked, verdicts, strict=True):
            if verdict.allowed:
                allowed.append(waiting)
            else:
                waiting.answer(_limited(verdict))
        if allowed:
            refusals = await self._door.refusals([waiting.request for waiting in allowed])
            for waiting, refusal in zip(allowed, refusals, strict=True):
                if refusal is None:
                    passed.append(waiting)
                else:
                    waiting.answer(refusal)
        return passed

    def _produce(self, partition: int, group: list[Waiting]) -> None:
        value = encode_requests([waiting.request for waiting in group])
        if len(value) > RECORD_BYTES_MAX:
            half = len(group) // 2
            self._produce(partition, group[:half])
            self._produce(partition, group[half:])
            return
        self._records += 1
        report: Callable[[KafkaError | None, Message], None] = partial(self._delivered, self._records)
        try:
            self._producer.produce(REQUESTS.name, value, partition=partition, on_delivery=report)
        except BufferError:
            for waiting in group:
                waiting.answer(overloaded())
            return
        self._in_flight[self._records] = (time.monotonic(), group)
        self._requests_in_flight += len(group)
        self._sent.set()

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        handed_over, group = self._in_flight.pop(number)
        self._requests_in_flight -= len(group)
        if error is not None:
            self._failed_at = time.monotonic()
            _log.error("a record of %d requests was not acknowledged: %s", len(group), error.str())
            for waiting in group:
                waiting.answer(_unknown())
            return
        self._metrics.append.observe(time.monotonic() - handed_over)
        self._clock.saw(message.timestamp()[1])
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        for index, waiting in enumerate(group):
            waiting.answer(Position(partition, offset, index))

    async def _poll(self) -> None:
        while True:
            await self._sent.wait()
            while self._in_flight:
                self._producer.poll(0)
                await asyncio.sleep(POLL_S)
            self._sent.clear()


def overloaded() -> Problem:
    """More than can be taken; nothing was logged. The jitter keeps those sent away from coming back as one."""
    seconds = random.randint(1, 3)  # noqa: S311 - jitter is no secret
    return Problem(problems.OVERLOADED, "Too many requests are waiting; nothing was done.", retry_after_s=seconds)


def _limited(verdict: Verdict) -> Problem:
    told = tuple((name.lower().encode(), value.encode()) for name, value in verdict.headers().items())
    return Problem(problems.RATE_LIMITED, "Come back later; nothing was done.", headers=told)


def _unknown() -> Problem:
    return Problem(
        problems.OUTCOME_UNKNOWN,
        "The log did not acknowledge in time. Send the same request with the same Idempotency-Key again.",
        extra={"outcome": "unknown"},
        retry_after_s=1,
    )
