"""The request batcher: from admitted requests to acknowledged ones. Each micro-batch is one call to the limits and one
record per partition.

The first request goes at once; while records are in flight, the next ones gather for GATHER_S. It carries out the steps
that `decide` names and decides nothing itself. Must not know HTTP beyond the problems it answers with.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial

from confluent_kafka import KafkaError, Message

from eventlog.kafka import place_of
from eventlog.producer import RenewedProducer, serve_reports
from gateway.admission.decide import Gate, Known, Step, decide
from gateway.admission.sale_gate import SaleGate, StaleAppends, final_answer
from gateway.admission.send import REPLAYED, Answer, Send, Unsettled
from gateway.auth.ids import partition_of_product
from gateway.http import problems
from gateway.http.retry_after import key_reused, limited, outcome_unknown, overloaded, undecided
from gateway.metrics import Metrics
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.follower import Waiters
from gateway.read_side.freshness import Freshness
from gateway.read_side.lookup import Lookup
from gateway.read_side.purchase_memory import PurchaseMemory, accepted
from gateway.read_side.purchase_state import Accepted, Answered
from ratelimit.limiter import BATCH_MAX, Limiter, Subject
from service.problem_details import Problem
from stampede_schemas.codec import RECORD_BYTES_MAX, REQUESTS_PER_RECORD_MAX, encode_requests
from stampede_schemas.identifiers import Position, ProductId, PurchaseId
from stampede_schemas.requests import AnyRequest, PurchaseRequested
from stampede_schemas.topics import REQUESTS

GATHER_S = 0.003
POLL_S = 0.001
WAITING_MAX = 5_000
UNANSWERED_MAX = 25_000
WAIT_S_MAX = 1.0  # a request that was not judged by then is refused: its buyer may come back, nothing was logged
GATE_S_MAX = 0.1  # how long the gate waits for a fresh view
OTHER_BODY_S_MAX = 0.5  # how long another body waits for the decision on the first
STUCK_S_MAX = 2.0
DRAIN_S_MAX = 6.0
_log = logging.getLogger(__name__)


class InFlight:
    """The sends that have no answer yet. Also the one place that says what is known of a purchase at this gateway."""

    def __init__(self, memory: PurchaseMemory, unsettled: Unsettled) -> None:
        self._memory, self.unsettled = memory, unsettled
        self.sends: dict[str, Send] = {}

    def begin(self, request: AnyRequest, subject: Subject | None, known: Known = "nothing") -> Send:
        """It is on its way."""
        now, done = time.monotonic(), asyncio.get_running_loop().create_future()
        send = Send(
            request, subject, partition_of_product(request.product_id), now, now, done, known, allowed=subject is None
        )
        self.sends[send.key] = send
        return send

    def end(self, send: Send, answer: Answer) -> None:
        """It has its answer."""
        self.sends.pop(send.key, None)
        send.answer(answer)

    def known(self, request: PurchaseRequested, own: Send | None = None) -> Known:
        """What is known of a purchase; `own` is the send that asks, whose row may have been read already."""
        purchase_id, state = request.purchase_id, self._memory.get(request.purchase_id)
        if isinstance(state, Accepted):
            return "accepted" if state.fingerprint == request.fingerprint else "other undecided"
        if state is not None:
            ours = state.mine.fingerprint if isinstance(state, Answered) and state.mine else state.fingerprint
            if ours:
                return "same body" if ours == request.fingerprint else "other body"
        send = self.sends.get(purchase_id)
        if send is not None and send is not own:
            same = send.purchase.fingerprint == request.fingerprint
            return "on its way" if same else "other undecided"
        if self.unsettled and (unsettled := self.unsettled.fingerprint(purchase_id)) is not None:
            return "unsettled" if unsettled == request.fingerprint else "other undecided"
        if state is None and not self._memory.ids.may_know(partition_of_product(request.product_id), purchase_id):
            return "nothing"
        # Its row was read: what came later is in memory.
        return own.known if own is not None and own.row_read else "remembered"


class RequestBatcher:
    """Owns the producer's delivery reports. `run` and `serve_reports` must be running for anything to happen."""

    def __init__(
        self,
        producer: RenewedProducer,
        limits: Limiter,
        gate: SaleGate,
        rows: Lookup,
        memory: PurchaseMemory,
        freshness: Freshness,
        waiters: Waiters,
        clock: BrokerClock,
        metrics: Metrics,
        gate_s_max: float = GATE_S_MAX,
    ) -> None:
        self._producer, self._limits, self._gate, self._rows = producer, limits, gate, rows
        self._memory, self._freshness, self._waiters = memory, freshness, waiters
        self._clock, self._metrics, self._gate_s_max = clock, metrics, gate_s_max
        self._in_flight = InFlight(memory, Unsettled())
        self._spare = StaleAppends()
        self._waiting: list[Send] = []
        # record -> when it was handed over, what is in it
        self._unacknowledged: dict[int, tuple[float, list[Send]]] = {}
        self._records = 0
        self._arrived = asyncio.Event()
        self._sent = asyncio.Event()
        self._failed_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether another request would have to be refused."""
        return len(self._waiting) >= WAITING_MAX or len(self._in_flight.sends) >= UNANSWERED_MAX

    @property
    def healthy(self) -> bool | str:
        """True, or what is wrong with getting things into the log."""
        now = time.monotonic()
        if self._unacknowledged and now - next(iter(self._unacknowledged.values()))[0] > STUCK_S_MAX:
            return f"the log has not acknowledged a record for {STUCK_S_MAX:.0f} s"
        if self._failed_at is not None and now - self._failed_at < STUCK_S_MAX:
            return "the log did not take the latest record"
        return True

    async def append(self, request: AnyRequest) -> Answer:
        """An operator's request: where it stands in the log, acknowledged, or why it is not known to be there."""
        return await self._enqueue(self._in_flight.begin(request, None))

    async def buy(self, request: PurchaseRequested, subject: Subject) -> Answer:
        """Where the purchase stands in the log, that it was answered before, or why neither."""
        give_up_at = 0.0
        while True:
            known = self._in_flight.known(request)
            match decide(known, "unasked", "open", "unasked"):
                case "replay":
                    state = self._memory.get(request.purchase_id)
                    if not isinstance(state, Accepted) or not await self._rows.overdue(state):
                        return REPLAYED
                case "key reused":
                    return key_reused()
                case "join":
                    answer = await self._in_flight.sends[request.purchase_id].join(time.monotonic())
                    return REPLAYED if isinstance(answer, Position) else answer
                case "await decision":
                    now = time.monotonic()
                    give_up_at = give_up_at or now + OTHER_BODY_S_MAX
                    if now >= give_up_at:
                        return undecided()
                    await self._changed(request.purchase_id, give_up_at - now)
                case "ask limits" | "ask row":
                    if self.full:
                        return overloaded()
                    return await self._enqueue(self._in_flight.begin(request, subject, known))
                case step:
                    raise AssertionError(f"{step} before the limits")

    async def _enqueue(self, send: Send) -> Answer:
        self._waiting.append(send)
        self._arrived.set()
        return await send.done

    async def _changed(self, purchase_id: PurchaseId, within_s: float) -> None:
        """Return when the first send of this purchase has its answer or is decided, or after `within_s`."""
        first = self._in_flight.sends.get(purchase_id)
        if first is not None:
            await asyncio.wait({first.share()}, timeout=within_s)
        else:
            await self._waiters.changed(purchase_id, within_s)

    async def run(self) -> None:
        """Batch until cancelled."""
        try:
            while True:
                await self._arrived.wait()
                if self._unacknowledged:
                    await asyncio.sleep(GATHER_S)
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                if not self._waiting:
                    self._arrived.clear()
                self._metrics.micro_batch.observe(len(batch))
                self._metrics.waiting.set(len(self._waiting))
                await self._guarded(batch, self._admit(batch))
        finally:
            for task in self._tasks:
                task.cancel()

    async def serve_reports(self) -> None:
        """Take the log's acknowledgements until cancelled."""
        await serve_reports(self._producer, self._sent, self._unacknowledged, POLL_S)

    async def drain(self) -> None:
        """Wait until everything has its answer, for at most DRAIN_S_MAX."""
        unanswered = [send.share() for send in self._in_flight.sends.values()]
        if unanswered:
            await asyncio.wait(unanswered, timeout=DRAIN_S_MAX)

    async def _guarded(self, sends: list[Send], work: Coroutine[None, None, None]) -> None:
        """One batch's bug must not end the gateway: its requests get their answer, the next batch goes on."""
        try:
            await work
        except Exception:
            _log.exception("a batch failed")
            on_record = {send for _, group in self._unacknowledged.values() for send in group}
            for send in sends:
                if send not in on_record:
                    self._in_flight.end(
                        send, Problem(problems.INTERNAL, "The gateway failed; send the same key again.")
                    )

    def _spawn(self, sends: list[Send], work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._guarded(sends, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _admit(self, batch: list[Send]) -> None:
        """Limits, gate and log for what has gathered."""
        now = time.monotonic()
        passed, judged, remembered = list[Send](), list[Send](), list[Send]()
        for send in batch:
            if send.subject is None:
                passed.append(send)
            elif now - send.entered > WAIT_S_MAX:
                self._in_flight.end(send, overloaded())
            elif send.known == "remembered":
                remembered.append(send)
            else:
                judged.append(send)
        if remembered:
            self._spawn(remembered, self._ask_rows(remembered))
        if judged:
            passed += await self._judge(judged, now)
        self._produce_all(passed)

    async def _judge(self, sends: list[Send], now: float) -> list[Send]:
        gates = self._gates(sends)
        # The ends are queried beside the limits: a purchase that needs both waits once.
        closed = {send.partition for send in sends if gates[send.request.product_id] != "open"}
        views = {n: self._view(n, now) for n in closed}
        unchecked = [send for send in sends if not send.allowed]
        verdicts = await self._limits.check([send.subject for send in unchecked if send.subject is not None])
        for send, verdict in zip(unchecked, verdicts, strict=True):
            send.allowed = verdict.allowed
            if not verdict.allowed:
                self._in_flight.end(send, limited(verdict))
        gates = self._gates(sends)  # the slower the limits, the more was sold meanwhile
        passed, at_gate = list[Send](), dict[int, list[Send]]()
        for send in sends:
            if not send.allowed:
                continue
            step = decide(send.known, "allowed", gates[send.request.product_id], "unasked")
            if step == "append":
                passed.append(send)
            else:
                assert step == "ask end"
                at_gate.setdefault(send.partition, []).append(send)
        for partition, group in at_gate.items():
            view = views.pop(partition, None) or self._view(partition, now)
            self._spawn(group, self._at_gate(partition, group, now, view))
        for view in views.values():
            view.cancel()
        return passed

    def _view(self, partition: int, moment: float) -> "asyncio.Task[bool]":
        return asyncio.create_task(self._freshness.fresh(partition, moment, self._gate_s_max))

    async def _at_gate(self, partition: int, group: list[Send], moment: float, view: "asyncio.Task[bool]") -> None:
        """Wait until the view covers the arrival of each, then judge once more."""
        give_up_at = moment + self._gate_s_max
        while group:
            fresh = await view
            passed, remembered, later = list[Send](), list[Send](), list[Send]()
            gates = self._gates(group)
            now = time.monotonic()
            for send in group:
                if fresh and send.arrived > moment and now < give_up_at:
                    later.append(send)  # a repeat joined it meanwhile
                    continue
                covered = fresh and send.arrived <= moment
                send.known = self._in_flight.known(send.purchase, send)
                step = self._step(send, gates[send.request.product_id], covered, now)
                if step == "append":
                    passed.append(send)
                elif step == "ask row":
                    remembered.append(send)
                else:
                    self._in_flight.end(send, final_answer(step, self._gate, send.request.product_id))
            if remembered:
                self._spawn(remembered, self._ask_rows(remembered))
            self._produce_all(passed)
            group, moment = later, now
            view = asyncio.create_task(self._freshness.fresh(partition, now, max(give_up_at - now, 0.0)))

    def _step(self, send: Send, gate: Gate, covered: bool, now: float) -> Step:
        step = decide(send.known, "allowed", gate, "fresh" if covered else "stale")
        if step != "busy":
            return step
        spare = decide(send.known, "allowed", gate, "spare")
        taken = spare == "append" and self._spare.take(send.partition, now)
        self._metrics.stale["appended" if taken else "refused"].inc()
        return spare if taken else step

    async def _ask_rows(self, sends: list[Send]) -> None:
        """Learn from Postgres what may be known only there; those who are none the wiser go on."""
        absent = await self._rows.settle([send.purchase.purchase_id for send in sends])
        for send in sends:
            send.row_read = True
            send.known = "nothing" if send.purchase.purchase_id in absent else "unproven"
            send.known = self._in_flight.known(send.purchase, send)
            step = decide(send.known, "unasked", "open", "unasked")
            if step == "ask limits":
                self._waiting.append(send)
                self._arrived.set()
            else:
                self._in_flight.end(send, final_answer(step, self._gate, send.request.product_id))

    def _gates(self, sends: Iterable[Send]) -> dict[ProductId, Gate]:
        """A batch is mostly about one product: the gate of each product is read once."""
        return {product: self._gate.says(product) for product in {send.request.product_id for send in sends}}

    def _produce_all(self, sends: list[Send]) -> None:
        by_partition: dict[int, list[Send]] = {}
        for send in sends:
            by_partition.setdefault(send.partition, []).append(send)
        for partition, group in by_partition.items():
            for start in range(0, len(group), REQUESTS_PER_RECORD_MAX):
                self._produce(partition, group[start : start + REQUESTS_PER_RECORD_MAX])

    def _produce(self, partition: int, group: list[Send]) -> None:
        value = encode_requests([send.request for send in group])
        if len(value) > RECORD_BYTES_MAX:
            half = len(group) // 2
            self._produce(partition, group[:half])
            self._produce(partition, group[half:])
            return
        self._records += 1
        report: Callable[[KafkaError | None, Message], None] = partial(self._delivered, self._records)
        handed_over = time.monotonic()
        try:
            self._producer.produce(REQUESTS.name, value, partition=partition, on_delivery=report)
        except BufferError:
            for send in group:
                self._in_flight.end(send, overloaded())
            return
        self._unacknowledged[self._records] = handed_over, group
        self._sent.set()

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        produced_at, group = self._unacknowledged.pop(number)
        now = time.monotonic()
        if error is not None:
            self._failed_at = now
            _log.error("a record of %d requests was not acknowledged: %s", len(group), error.str())
            for send in group:
                if isinstance(send.request, PurchaseRequested):
                    self._in_flight.unsettled.add(send.request)
                self._in_flight.end(send, outcome_unknown())
            return
        self._metrics.append.observe(now - produced_at)
        self._clock.saw(message.timestamp()[1], now - produced_at)
        partition, offset = place_of(message)
        self._freshness.acknowledged(partition, offset, produced_at)
        for index, send in enumerate(group):
            position = Position(partition, offset, index)
            request, stands = send.request, True
            if isinstance(request, PurchaseRequested):
                stands = self._memory.accepted(accepted(request, position, now))
            self._in_flight.end(send, position if stands else outcome_unknown())
