"""From admitted requests to acknowledged ones: each tick is one limiter call and one record per partition.

The first request goes at once; while records are in flight, the next ones gather for TICK_S. This is the one place
where a purchase is held back after it was found well-formed: by the limits, by the door, by a full queue. Must not
know HTTP beyond the problems it answers with.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Final, Literal, Protocol

from confluent_kafka import KafkaError, Message, Producer

from gateway import problems
from gateway.claims import Ruling
from gateway.metrics import Metrics
from gateway.problems import Problem
from gateway.retry_after import overloaded
from gateway.tail import BrokerClock
from ratelimit.claim import DEADLINE_S, Claim, Known, Settled
from ratelimit.limiter import BATCH_MAX, Subject, Verdict
from stampede_schemas.codec import RECORD_BYTES_MAX, REQUESTS_PER_RECORD_MAX, encode_requests
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import AnyRequest, PurchaseRequested
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
    """Judges a tick's requests and what is claimed of them in one call, and never raises."""

    async def check(self, batch: Sequence[Subject], claims: Sequence[Claim]) -> Ruling:
        """One verdict per subject, in order; at most BATCH_MAX subjects."""
        ...

    def settle(self, settled: Iterable[Settled]) -> None:
        """What became of them."""
        ...


class Door(Protocol):
    """Says no where the answer is certain without the log, if the purchase is new."""

    def refusals(self, requests: list[PurchaseRequested]) -> list[Problem | None]:
        """One answer per request, in order; None lets it pass."""
        ...

    async def decided(self, purchase_ids: list[str]) -> Mapping[str, str] | None:
        """Which of them have an outcome already, and their fingerprints; None: that cannot be told now."""
        ...


class Replayed:
    """It was accepted before, and its first answer holds."""


REPLAYED: Final = Replayed()
Answer = Position | Replayed | Problem


class Waiting:
    """A request on its way to the log; `done` gets its position or the problem. Without `subject`: an operator's."""

    __slots__ = ("done", "entered", "partition", "request", "subject")

    def __init__(self, request: AnyRequest, subject: Subject | None, done: "asyncio.Future[Answer]") -> None:
        self.request, self.subject, self.done = request, subject, done
        self.partition = _partition_of(request.product_id)
        self.entered = time.monotonic()

    @property
    def purchase(self) -> PurchaseRequested:
        """The request of a buyer: there is no other kind."""
        assert isinstance(self.request, PurchaseRequested)
        return self.request

    def answer(self, answer: Answer) -> None:
        """Tell the caller, unless it is gone."""
        if not self.done.done():
            self.done.set_result(answer)


class Appender:
    """Owns the producer's delivery reports. `run` must be running for anything to happen."""

    def __init__(
        self,
        producer: Producer,
        limits: Limits,
        door: Door,
        clock: BrokerClock,
        metrics: Metrics,
        claimed_s_max: float = DEADLINE_S,
    ) -> None:
        self._claimed_s_max = claimed_s_max
        self._producer, self._limits, self._door, self._clock, self._metrics = producer, limits, door, clock, metrics
        self._waiting: list[Waiting] = []
        self._judged_at = 0.0  # the tick under way
        # record -> when it was handed over, when its tick began, what is in it
        self._in_flight: dict[int, tuple[float, float, list[Waiting]]] = {}
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
        in_flight = [waiting for *_, group in self._in_flight.values() for waiting in group]
        unanswered = [waiting.done for waiting in self._waiting + in_flight]
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
            self._settle([waiting for waiting in batch if not waiting.done.done()], "o")
            for waiting in batch:
                waiting.answer(Problem(problems.INTERNAL, "The gateway failed; send the same key again."))

    async def _judge(self, batch: list[Waiting]) -> list[Waiting]:
        now = self._judged_at = time.monotonic()
        passed: list[Waiting] = []
        asked: list[Waiting] = []
        for waiting in batch:
            if waiting.subject is None:
                passed.append(waiting)
            elif now - waiting.entered > WAIT_S_MAX:
                waiting.answer(overloaded())
            else:
                asked.append(waiting)
        if not asked:
            return passed
        purchases = [waiting.purchase for waiting in asked]
        refusals = self._door.refusals(purchases)
        # What the door will turn away is looked for, but claims nothing: its key stays as good as new.
        claims = [
            Claim(purchase.purchase_id, purchase.fingerprint, purchase.buyer_id, refusal is None)
            for purchase, refusal in zip(purchases, refusals, strict=True)
        ]
        verdicts, vouched = await self._limits.check([w.subject for w in asked if w.subject is not None], claims)
        by_row: dict[str, tuple[Waiting, Problem | None]] = {}
        for waiting, refusal, verdict in zip(asked, refusals, verdicts, strict=True):
            answer = _answer(verdict, vouched=vouched)
            if answer is not None:
                waiting.answer(answer)
                if verdict.degraded:  # the call may have claimed it before it was given up
                    self._settle([waiting], "d")
            elif verdict.known is Known.AGAIN:
                by_row[waiting.purchase.purchase_id] = waiting, None
            elif vouched and (no := key_reused() if verdict.known is Known.OTHER else refusal) is not None:
                by_row[waiting.purchase.purchase_id] = waiting, no
            else:
                passed.append(waiting)
        if by_row:
            passed += await self._judge_by_rows(by_row)
        return passed

    async def _judge_by_rows(self, asked: dict[str, tuple[Waiting, Problem | None]]) -> list[Waiting]:
        """Whoever has a row gets the answer of its body; others what is said here, or go to the log.

        A claim is not enough: while nobody could tell, another body may have come later and been claimed. If nobody
        can tell who has a row, all go to the log but those whose claim is another body's.
        """
        decided, passed = await self._door.decided(list(asked)), list[Waiting]()
        for purchase_id, (waiting, otherwise) in asked.items():
            first = decided.get(purchase_id) if decided is not None else None
            if first is not None:
                ours = first == waiting.purchase.fingerprint
                waiting.answer(REPLAYED if ours else key_reused())
                if otherwise is None:  # the claim is this request's now, and must be the row's
                    self._limits.settle([Settled(purchase_id, first, waiting.purchase.buyer_id, "a")])
            elif otherwise is None or (decided is None and otherwise.kind is not problems.KEY_REUSED):
                passed.append(waiting)
            else:
                waiting.answer(otherwise)
        return passed

    def _settle(self, group: list[Waiting], how: Literal["a", "o", "d"]) -> None:
        self._limits.settle(
            [
                Settled(request.purchase_id, request.fingerprint, request.buyer_id, how)
                for waiting in group
                if waiting.subject is not None and isinstance(request := waiting.request, PurchaseRequested)
            ]
        )

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
            self._settle(group, "d")
            return
        self._in_flight[self._records] = (time.monotonic(), self._judged_at, group)
        self._requests_in_flight += len(group)
        self._sent.set()

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        handed_over, judged_at, group = self._in_flight.pop(number)
        self._requests_in_flight -= len(group)
        if error is not None:
            self._failed_at = time.monotonic()
            _log.error("a record of %d requests was not acknowledged: %s", len(group), error.str())
            for waiting in group:
                waiting.answer(_unknown())
            self._settle(group, "o")
            return
        self._settle(group, "a")
        if time.monotonic() - judged_at > self._claimed_s_max:  # its claim says nothing any more, and others go by that
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


def _answer(verdict: Verdict, *, vouched: bool) -> Replayed | Problem | None:
    """What is to be said at once; None: nothing yet. A Redis that may have forgotten refuses nobody."""
    if verdict.known is Known.ACCEPTED:
        return REPLAYED
    if vouched and verdict.known is Known.IN_FLIGHT:
        return in_flight()
    return None if verdict.allowed else _limited(verdict)


def key_reused() -> Problem:
    """One key, two bodies."""
    return Problem(problems.KEY_REUSED, "Its first request had another body; use a new key for a new purchase.")


def in_flight() -> Problem:
    """A twin is neither in the log nor refused yet."""
    return Problem(problems.IN_FLIGHT, "The first request with this key is not in the log yet.", retry_after_s=1)


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
