"""Calls the payment provider for every due payment, and passes its answers on to the saga.

Any order-writer leases due payments with SKIP LOCKED; leases are short and renewed, so that a crash delays its
payments by seconds. Two at once are harmless: the provider is idempotent by purchase, and the row's lock decides. It is
so only for a time: a payment begun longer ago than the provider's idempotency horizon is queried, never authorised
again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple, assert_never

import asyncpg

from order_writer.ops.metrics import Metrics
from order_writer.ops.spans import Spans
from order_writer.payments.circuit_breaker import STATES, Breaker
from order_writer.payments.provider import Answer, Approved, Awaited, Declined, Provider, Unknown, Voided
from order_writer.postgres.pool import describe, outage_logged, repeat
from order_writer.saga import orders
from order_writer.unit_of_work import UnitsOfWork, columns, purchase_of
from service.tasks import long_lived_tasks
from stampede_schemas.identifiers import PurchaseId

LEASE_S = 5.0
RENEW_EVERY_S = 1.5
POLL_EVERY_S = 0.25  # for what other writers left, and for retries
RETRY_S_MAX = 60.0
TIMEOUT_COUNTS_AS = 3  # more attempts: a call that held a place for so long is repeated less often
AWAIT_S = 3_600.0  # a reported payment needs no call; but another provider may be set meanwhile
OUTCOMES_PER_TRANSACTION_MAX = 1_000

LEASE = """
WITH open AS (
  SELECT purchase_id FROM payments
  WHERE state IN ('due', 'unknown', 'void_due') AND next_at <= now() AND (lease_until IS NULL OR lease_until <= now())
  ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED)
UPDATE payments p SET lease_until = now() + $2 * interval '1 second', next_at = now() + $2 * interval '1 second',
       attempts = attempts + 1, asked_at = now(),
       begun_at = CASE WHEN p.state = 'void_due' THEN p.begun_at ELSE coalesce(p.begun_at, now()) END
FROM open LEFT JOIN purchases u USING (purchase_id) WHERE p.purchase_id = open.purchase_id
RETURNING p.purchase_id, p.state, p.attempts, p.captured, p.begun_at + $3 * interval '1 second' <= now() AS forgotten,
  u.buyer_id, u.product_id, u.quantity, u.status, u.reason, u.reservation_no, u.unit_price_minor, u.currency,
  u.payment_method, u.partition, u.source_offset, u.source_index, u.refund,
  u.stock_returned_at IS NOT NULL AS returned, u.traceparent, u.version"""
RENEW = """
UPDATE payments SET lease_until = now() + $2 * interval '1 second', next_at = now() + $2 * interval '1 second'
WHERE purchase_id = ANY($1::text[]) AND lease_until IS NOT NULL"""
RETURN_LEASES = """
UPDATE payments SET lease_until = NULL, next_at = now()
WHERE purchase_id = ANY($1::text[]) AND lease_until IS NOT NULL"""
CALL_AGAIN = """
UPDATE payments p SET state = CASE state WHEN 'due' THEN 'unknown' ELSE state END, lease_until = NULL,
       next_at = now() + a.wait_s * interval '1 second'
FROM unnest($1::text[], $2::float8[]) AS a (purchase_id, wait_s)
WHERE p.purchase_id = a.purchase_id AND p.lease_until IS NOT NULL"""
_log = logging.getLogger(__name__)


class Due(NamedTuple):
    """One leased payment. `order` None: void it. `forgotten`: the provider may not know any more that it was begun."""

    purchase_id: PurchaseId
    order: orders.Order | None
    attempts: int
    captured: bool
    forgotten: bool

    @property
    def key(self) -> tuple[PurchaseId, bool]:
        """A void does not wait for the authorisation it forbids."""
        return self.purchase_id, self.order is None


Outcome = tuple[Due, Answer]  # of one call


class Payer:
    """Runs beside the consumers. At most `in_flight_max` calls are open at once, and none while the breaker is open.

    A call without an answer after `timeout_s` is unknown, and a failure of the provider.
    """

    def __init__(
        self,
        units: UnitsOfWork,
        provider: Provider,
        in_flight_max: int,
        timeout_s: float,
        horizon_s: float,
        metrics: Metrics,
        spans: Spans,
        heartbeat: Callable[[], None],
    ) -> None:
        self._units, self._provider = units, provider
        self._in_flight_max, self._timeout_s, self._horizon_s = in_flight_max, timeout_s, horizon_s
        self._metrics, self._spans, self._heartbeat = metrics, spans, heartbeat
        self._calls: dict[tuple[PurchaseId, bool], asyncio.Task[None]] = {}
        self._outcomes: list[Outcome] = []  # not stored yet; no longer than the calls are many
        self._answered = asyncio.Event()
        self._breaker = Breaker()

    async def run(self, stopping: asyncio.Event) -> None:
        """Pay until asked to stop; open calls are then left to the next lease."""
        heartbeat, due, answered = self._heartbeat, self._units.payments_due, self._answered
        try:
            async with long_lived_tasks(stopping) as start:
                for name, what, work, every_s, wake in (
                    ("lease due payments", "paying", self._lease, POLL_EVERY_S, due),
                    ("store answers", "storing answers", self._store, POLL_EVERY_S, answered),
                    ("renew leases", "renewing leases", self._renew, RENEW_EVERY_S, None),
                ):
                    start(name, repeat(work, heartbeat, stopping, what, every_s=every_s, wake=wake))
            if calls := [purchase_id for purchase_id, _ in self._calls]:
                with outage_logged("payment leases were not returned"):
                    await self._units.pool.execute(RETURN_LEASES, calls)
        finally:
            for task in self._calls.values():
                task.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)

    async def _lease(self) -> bool:
        """Begin as many calls as there is room for; whether there still is."""
        free = self._breaker.room(self._in_flight_max - len(self._calls), time.monotonic())
        self._metrics.circuit_state.set(STATES.index(self._breaker.state))
        rows = await self._units.pool.fetch(LEASE, free, LEASE_S, self._horizon_s) if free > 0 else []
        for row in rows:
            self._begin(row)
        return 0 < len(rows) < free

    def _begin(self, row: asyncpg.Record) -> None:
        due = Due(row["purchase_id"], None, row["attempts"], row["captured"], bool(row["forgotten"]))
        if row["state"] != "void_due":
            purchase = purchase_of(row) if row["status"] else None
            if not isinstance(purchase, orders.Reserved):
                return  # only what is still held may be charged; the release that ended it makes a void due
            due = due._replace(order=purchase.order)
        if due.key not in self._calls:
            self._breaker.began()
            self._calls[due.key] = asyncio.create_task(self._call(due))

    async def _call(self, due: Due) -> None:
        started = time.time_ns()
        answer: Answer = Unknown()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._answer(due)
            self._breaker.succeeded()
        except (Exception, asyncio.CancelledError) as error:
            # A call that its own provider cancels must not end without an outcome: it would keep its place for ever.
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            if isinstance(error, TimeoutError):
                due = due._replace(attempts=due.attempts + TIMEOUT_COUNTS_AS)
            if self._breaker.failed(time.monotonic()):
                self._metrics.circuit_opened.inc()
                _log.error("the payment provider failed too often, no call is made for a while: %s", describe(error))
            else:
                _log.warning("the payment provider failed: %s", describe(error))
        self._metrics.circuit_state.set(STATES.index(self._breaker.state))
        name = type(answer).__name__.lower()
        self._metrics.payments.labels(name if due.order or name == "voided" else f"void_{name}").inc()
        if due.order is not None:
            outcome = f"declined: {answer.reason}" if isinstance(answer, Declined) else name
            self._spans.payment(due.order, started, outcome)
        self._outcomes.append((due, answer))
        self._answered.set()

    async def _answer(self, due: Due) -> Answer:
        if due.order is None:
            return await self._provider.void(due.purchase_id, captured=due.captured)
        call = self._provider.query if due.forgotten else self._provider.authorize
        return await call(due.order)

    async def _store(self) -> bool:
        """Store the answers; whether there were any. They stay here until that is committed."""
        outcomes = self._outcomes[:OUTCOMES_PER_TRANSACTION_MAX]
        if outcomes:
            await self._write(outcomes)
            del self._outcomes[: len(outcomes)]
            for due, _ in outcomes:
                self._calls.pop(due.key, None)
            self._units.payments_due.set()
        return bool(outcomes)

    async def _write(self, outcomes: list[Outcome]) -> None:
        messages: list[tuple[PurchaseId, orders.Message]] = []
        again: list[tuple[PurchaseId, float]] = []
        for due, answer in outcomes:
            match answer:
                case Unknown():
                    again.append((due.purchase_id, retry_after_s(due.attempts)))
                case Awaited():
                    again.append((due.purchase_id, AWAIT_S))
                case Voided():
                    messages.append((due.purchase_id, orders.PaymentVoided(due.captured)))
                case Approved():
                    messages.append((due.purchase_id, orders.PaymentApproved()))
                case Declined():
                    messages.append((due.purchase_id, orders.PaymentDeclined()))
                case _:
                    assert_never(answer)
        async with self._units.open() as unit:
            await unit.handle(messages)
            if again:
                await unit.connection.execute(CALL_AGAIN, *columns(sorted(again), 2))

    async def _renew(self) -> None:
        if calls := [purchase_id for purchase_id, _ in self._calls]:
            await self._units.pool.execute(RENEW, calls, LEASE_S)


def retry_after_s(attempts: int) -> float:
    """1, 2, 4 s after the first attempts, then slower up to a minute; a quarter of jitter either way."""
    return min(2.0 ** min(attempts - 1, 10), RETRY_S_MAX) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
