"""The payment port on a real database: which calls are made, for how long, and what the webhook's reports do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from order_writer.ops.metrics import Metrics
from order_writer.ops.spans import Spans
from order_writer.payments.payer import Payer
from order_writer.payments.provider import Provider, Verdict, Voided
from order_writer.saga import orders
from order_writer.saga.orders import Order
from order_writer.unit_of_work import UnitsOfWork
from payment_simulator.journal import Journal
from payment_simulator.provider import Simulated
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_events import OrderRefunded, OrderReleased
from telemetry import names
from telemetry.tracing import configure
from tests.support.builders.orders import Installation, insert_orders, installation, listed, reserved, until
from tests.support.builders.reports import paid, refunded
from tests.support.processes.stack import LocalStack

REPORT, REFUND = paid(), refunded()


@asynccontextmanager
async def paying(
    units: UnitsOfWork, provider: Provider, in_flight_max: int = 20, timeout_s: float = 10.0
) -> AsyncIterator[Metrics]:
    """A payer at work; its metrics."""
    metrics, stopping = Metrics("test"), asyncio.Event()
    spans = Spans(configure("order-writer", "test", "", 0.0))
    payer = Payer(units, provider, in_flight_max, timeout_s, 3_600.0, metrics, spans, lambda: None)
    task = asyncio.create_task(payer.run(stopping))
    try:
        yield metrics
    finally:
        stopping.set()
        await task


async def make_due(place: Installation, begun_hours_ago: float = 0.0) -> None:
    """A payment for every order."""
    await place.rows(
        """INSERT INTO payments (purchase_id, method, state, begun_at)
           SELECT purchase_id, payment_method, 'due', now() - make_interval(hours => nullif($1::int, 0))
           FROM purchases""",
        begun_hours_ago,
    )


class Counting(Simulated):
    """Counts what it is asked; `dead`: it never answers."""

    dead = False

    def __init__(self) -> None:
        super().__init__(Journal())
        self.asked: list[PurchaseId] = []
        self.queried: list[PurchaseId] = []
        self.voids: list[tuple[PurchaseId, bool]] = []

    async def authorize(self, order: Order) -> Verdict:
        """See Simulated."""
        self.asked.append(order.purchase_id)
        if self.dead:
            raise ConnectionRefusedError("nobody there")
        return await super().authorize(order)

    async def query(self, order: Order) -> Verdict:
        """See Simulated."""
        self.queried.append(order.purchase_id)
        return await super().query(order)

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """See Simulated."""
        self.voids.append((purchase_id, captured))
        return await super().void(purchase_id, captured=captured)


async def test_a_dead_provider_is_left_in_peace_and_found_again(quiet: Installation, units: UnitsOfWork) -> None:
    """100 payments are due and nobody answers: some twenty calls, then silence but for probes; healed, all are paid."""
    await insert_orders(quiet, 100)
    await make_due(quiet)
    provider = Counting()
    provider.dead = True
    async with paying(units, provider) as metrics:

        def state() -> float | None:
            return metrics.registry.get_sample_value(names.PAYMENT_CIRCUIT_STATE)

        async def probed() -> bool:
            return (metrics.registry.get_sample_value(f"{names.PAYMENT_CIRCUIT_OPENED}_total") or 0) > 1

        async with asyncio.timeout(20):
            while not await probed():  # noqa: ASYNC110 - the gauge is read in the instant of the counter
                await asyncio.sleep(0.001)
        assert state() == 2  # at once: not only when the next payments are leased
        assert len(provider.asked) < 30
        assert await quiet.value("SELECT count(*) FROM payments WHERE state IN ('due', 'unknown')") == 100
        provider.dead = False
        confirmed = "SELECT count(*) = 100 FROM purchases WHERE status = 'confirmed'"
        await until(lambda: quiet.value(confirmed), "all paid", 30.0)
        assert state() == 0


class Hanging(Counting):
    """The first so many calls are never answered."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    async def authorize(self, order: Order) -> Verdict:
        """See Simulated."""
        answer = await super().authorize(order)
        if len(self.asked) <= self._first:
            await asyncio.Event().wait()
        return answer


async def test_a_call_that_hangs_gives_its_place_up(quiet: Installation, units: UnitsOfWork) -> None:
    """As many hang as may be open at once: the others are paid all the same, and those are asked again, but later than
    a call that was answered with "unknown"."""
    await insert_orders(quiet, 20)
    await make_due(quiet)
    provider = Hanging(4)
    async with paying(units, provider, in_flight_max=4, timeout_s=0.5):
        confirmed = "SELECT count(*) = 16 FROM purchases WHERE status = 'confirmed'"
        await until(lambda: quiet.value(confirmed), "the others are paid")
        assert await quiet.value("SELECT count(*) FROM payments WHERE state = 'unknown'") == 4
        assert await quiet.value("SELECT min(next_at) > now() + interval '3 seconds' FROM payments WHERE attempts = 1")
        assert len(provider.asked) == 20
        await until(lambda: quiet.value("SELECT count(*) = 0 FROM purchases WHERE status = 'reserved'"), "all paid")
    assert len(provider.asked) == 24


async def test_the_breaker_hears_of_calls_that_hang(quiet: Installation, units: UnitsOfWork) -> None:
    """No answer in time is a failure like any other: after eight in a row no call is made for a while."""
    await insert_orders(quiet, 100)
    await make_due(quiet)
    provider = Hanging(10**6)
    async with paying(units, provider, in_flight_max=10, timeout_s=0.3) as metrics:

        async def opened() -> bool:
            return metrics.registry.get_sample_value(names.PAYMENT_CIRCUIT_STATE) == 2

        await until(opened, "the breaker is open")
    assert len(provider.asked) < 30


async def test_past_the_idempotency_horizon_nobody_is_charged_again(quiet: Installation, units: UnitsOfWork) -> None:
    """The provider has forgotten the key: it is asked what became of it. What it took is kept."""
    await insert_orders(quiet, 3)
    provider = Counting()
    taken = Order(PurchaseId("p1"), "b", "shoe", 2, (0, 1, 0), 1, 4_200, "EUR", "ok", None)  # type: ignore[arg-type]
    await provider.authorize(taken)
    await provider.authorize(replace(taken, purchase_id=PurchaseId("p3")))
    provider.asked.clear()
    await make_due(quiet, 2)  # of an hour's horizon
    await quiet.rows("UPDATE payments SET begun_at = now() - interval '59 minutes' WHERE purchase_id = 'p3'")
    async with paying(units, provider):
        await until(lambda: quiet.value("SELECT count(*) = 0 FROM purchases WHERE status = 'reserved'"), "settled")
    assert await quiet.statuses() == {"p1": "confirmed", "p2": "released", "p3": "confirmed"}
    assert (sorted(provider.queried), provider.asked) == (["p1", "p2"], ["p3"])


@pytest.mark.parametrize("status", ["confirmed", "released", "rejected"])
async def test_only_what_is_held_is_charged(quiet: Installation, units: UnitsOfWork, status: str) -> None:
    """A payment that is due for anything else (somebody's mistake) is not made."""
    await insert_orders(quiet, 2, "reserved")
    await quiet.rows("UPDATE purchases SET status = $1 WHERE purchase_id = 'p1'", status)
    await make_due(quiet)
    provider = Counting()
    async with paying(units, provider):
        await until(lambda: quiet.value("SELECT true FROM purchases WHERE status = 'confirmed' AND version = 3"), "p2")
        await until(lambda: quiet.value("SELECT attempts > 0 FROM payments WHERE purchase_id = 'p1'"), "p1 leased")
    assert provider.asked == ["p2"]


class Forgetful(Counting):
    """Says that there was nothing to give back while an approval is on its way."""

    def __init__(self, place: Installation) -> None:
        super().__init__()
        self._place = place

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """Before the first answer arrives, the approval does."""
        if not captured:
            await self._place.rows("UPDATE payments SET captured = true, lease_until = NULL, next_at = now()")
        return await super().void(purchase_id, captured=captured)


async def test_a_void_that_crossed_the_approval_is_repeated(quiet: Installation, units: UnitsOfWork) -> None:
    """An answer that did not know of the money does not count: the provider is told again, with what is known."""
    await insert_orders(quiet, 1, "released")
    await quiet.rows("INSERT INTO payments (purchase_id, method, state) VALUES ('p1', 'ok', 'void_due')")
    provider = Forgetful(quiet)
    async with paying(units, provider):
        await until(lambda: quiet.value("SELECT true FROM payments WHERE state = 'voided'"), "voided", 15.0)
    assert provider.voids == [("p1", False), ("p1", True)]


async def test_the_webhook_decides_and_a_late_approval_is_refunded_by_report(quiet_servers: LocalStack) -> None:
    """No call is made: a report confirms; one that comes too late makes a refund due, until its refund is reported."""
    async with installation(quiet_servers.kafka, quiet_servers.postgres) as place:
        place.log.append(2, [listed()], [reserved("p1", 1, hold_ms=100), reserved("p2", 2), reserved("p3", 3)])
        async with place.writer(payment="webhook", authorize_grace_ms=0) as task:
            released = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND status = 'released'"
            await until(lambda: place.value(released), "p1's end", task=task)
            place.command(
                replace(REPORT, purchase_id=PurchaseId("p2")),
                replace(REPORT, purchase_id=PurchaseId("p3"), outcome="declined"),
                REPORT,
                replace(REPORT, report_id=RequestId("again")),
            )
            due = "SELECT count(*) = 1 FROM payments WHERE state = 'void_due' AND captured"
            await until(lambda: place.value(due), "a refund due", task=task)
            sold = "SELECT true FROM purchases WHERE purchase_id = 'p2' AND status = 'confirmed'"
            await until(lambda: place.value(sold), "p2 sold", task=task)
            place.command(REFUND, replace(REFUND, report_id=RequestId("again")))
            done = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND refund = 'done'"
            await until(lambda: place.value(done), "the refund", task=task)
            await until(lambda: place.value("SELECT count(*) = 0 FROM outbox"), "sent", task=task)
        assert await place.statuses() == {"p1": "released", "p2": "confirmed", "p3": "released"}
        events = [event for event in place.events() if event.purchase_id == "p1"]
        assert [(type(event), event.version, event.refund) for event in events] == [
            (OrderReleased, 3, "none"),
            (OrderReleased, 4, "due"),
            (OrderRefunded, 5, "done"),
        ]
        states = {row[0]: row[1] for row in await place.rows("SELECT purchase_id, state FROM payments")}
        assert states == {"p1": "voided", "p2": "approved", "p3": "voided"}


async def test_money_taken_of_the_wrong_amount_is_not_forgotten(quiet: Installation, units: UnitsOfWork) -> None:
    """It confirms nothing, and when the hold has ended it is still known that money has to go back."""
    await insert_orders(quiet, 1)
    await make_due(quiet)
    async with units.open() as unit:
        await unit.handle([(PurchaseId("p1"), orders.PaymentApproved(1, "EUR"))])
        assert [reason for _, reason in unit.refused] == ["amount_differs"]
    async with units.open() as unit:
        await unit.handle([(PurchaseId("p1"), orders.HoldExpired())])
    [row] = await quiet.rows("SELECT state, captured FROM payments")
    assert tuple(row) == ("void_due", True)
