"""How reservations end on real components: payment in all its moods, expiry, cancellation, the outbox, the trace."""

import asyncio
import json
import secrets
from pathlib import Path

import asyncpg

from order_writer.outbox.messages import Outgoing, encode_outbox
from order_writer.outbox.relay import Relay
from order_writer.payments.payer import POLL_EVERY_S
from order_writer.payments.provider import Approved, Declined, Unknown, Verdict, Voided
from order_writer.saga.orders import Order
from stampede_schemas.identifiers import Position, PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested, PaymentReported
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import DECISIONS, ORDERS
from tests.support.builders.orders import TRACEPARENT, Installation, empty, letters, listed, reserved, until
from tests.support.builders.reports import paid


async def row(place: Installation, purchase_id: str = "p1") -> dict[str, object]:
    """One purchase; empty while there is none."""
    found = await place.rows("SELECT * FROM purchases WHERE purchase_id = $1", purchase_id)
    return dict(found[0]) if found else {}


async def has(place: Installation, **wanted: object) -> bool:
    """Whether the purchase `p1` has these values."""
    return wanted.items() <= (await row(place)).items()


def releases(place: Installation) -> list[tuple[Position, str]]:
    """The releases that were requested."""
    return [(r.reservation, r.reason) for _, r in place.requests() if isinstance(r, ReleaseRequested)]


class Till:
    """A provider that answers when the test says so, and writes down what it did."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.voids: list[PurchaseId] = []

    async def authorize(self, order: Order) -> Verdict:
        """Wait for the test."""
        self.asked.set()
        return await asyncio.shield(self.answer)

    query = authorize

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided | Unknown:
        """Count it; the first one gets no answer."""
        del captured
        self.voids.append(purchase_id)
        return Voided() if len(self.voids) > 1 else Unknown()


async def test_an_order_is_confirmed_at_once(place: Installation) -> None:
    """100 paid orders, one call at a time: each is begun when the one before is settled, not at the next look."""
    place.log.append(0, [listed()])
    async with place.writer(payments_in_flight=1) as task:
        await until(lambda: place.value("SELECT count(*) = 1 FROM products"), "running", task=task)
        place.log.append(0, [reserved(f"p{i}", i + 1) for i in range(100)])
        confirmed = "SELECT count(*) = 100 FROM purchases WHERE status = 'confirmed'"
        await until(lambda: place.value(confirmed), "confirmed", 60, task)
        slowest = await place.value("SELECT max(extract(epoch FROM updated_at - created_at))::float8 FROM purchases")
        assert isinstance(slowest, float)
        assert slowest < 100 * POLL_EVERY_S / 2


async def test_unknown_is_asked_again_until_it_is_known(place: Installation) -> None:
    """Twice no answer, then yes: confirmed, and only once."""
    place.log.append(0, [listed()], [reserved("p1", 1, method="flaky"), reserved("p2", 2, method="mystery")])
    async with place.writer() as task:
        await until(lambda: has(place, status="confirmed"), "confirmed", task=task)
        assert await place.value("SELECT attempts FROM payments WHERE purchase_id = 'p1'") == 3
        assert (await row(place, "p2"))["reason"] == "payment_declined"
        await until(lambda: empty(place), "sent", task=task)
    assert sorted((event.purchase_id, event.version) for event in place.events()) == [("p1", 3), ("p2", 3)]


async def test_an_unpaid_hold_expires(place: Installation) -> None:
    """Its payment is unknown until the hold ends: released once, voided, and its stock given back."""
    place.log.append(2, [listed()], [reserved("p1", 1, method="unknown", hold_ms=300)])
    async with place.writer(authorize_grace_ms=300) as task:
        await until(lambda: has(place, status="released", reason="hold_expired"), "expired", task=task)
        await until(lambda: place.value("SELECT true FROM payments WHERE state = 'voided'"), "voided", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert releases(place) == [(Position(2, 1, 0), "hold_expired")]


async def test_an_approval_that_comes_after_the_release_is_refunded_once(place: Installation) -> None:
    """The buyer cancels while the provider thinks: released; its late yes is voided, and the row says refunded."""
    till = Till()
    place.log.append(2, [listed()], [reserved("p1", 1)])
    async with place.writer(provider=till) as task:
        await till.asked.wait()
        cancel = CancelRequested(request_id=RequestId("c1"), purchase_id=PurchaseId("p1"), actor="buyer-of-p1")
        place.command(cancel)
        await until(lambda: has(place, status="released", reason="cancelled"), "cancelled", task=task)
        await until(lambda: place.value("SELECT true FROM payments WHERE state = 'voided'"), "voided", task=task)
        till.answer.set_result(Approved())
        await until(lambda: has(place, refund="done", version=5), "refunded", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert releases(place) == [(Position(2, 1, 0), "cancelled")]
    kinds = [(type(event).__name__, event.version, event.refund) for event in place.events()]
    assert kinds == [("OrderReleased", 3, "none"), ("OrderReleased", 4, "due"), ("OrderRefunded", 5, "done")]
    assert len(till.voids) == 3  # one without an answer, one for the release, one for the money that came late


async def test_a_payment_outlives_its_writer(place: Installation) -> None:
    """A writer stops while the provider thinks; the next one asks again."""
    place.log.append(2, [listed()], [reserved("p1", 1)])
    silent, till = Till(), Till()
    async with place.writer(provider=silent):
        await silent.asked.wait()
    till.answer.set_result(Declined("no"))
    async with place.writer(provider=till) as task:
        await until(lambda: has(place, status="released"), "declined", task=task)


async def test_commands_wait_for_their_row_and_bad_ones_become_dead_letters(place: Installation) -> None:
    """A report before its decision is pending; a wrong amount, a stranger's cancel and garbage are dead letters."""
    report = paid()
    place.command(report)
    async with place.writer(provider=Till()) as task:
        pending = "SELECT count(*) = 1 FROM pending_commands"
        await until(lambda: place.value(pending), "pending", task=task)
        place.log.append(2, [listed()], [reserved("p1", 1), reserved("p2", 2)])
        await until(lambda: has(place, status="confirmed"), "confirmed", task=task)
        place.command(CancelRequested(request_id=RequestId("c1"), purchase_id=PurchaseId("p1"), actor="stranger"))
        dear = PaymentReported(
            report_id=RequestId("r2"),
            purchase_id=PurchaseId("p2"),
            outcome="approved",
            amount_minor=1,
            currency="EUR",
            provider_ref="x",
        )
        place.command(dear)
        await until(lambda: letters(place, 2), "two dead letters", task=task)
        assert await place.statuses() == {"p1": "confirmed", "p2": "reserved"}


async def test_a_slow_transaction_between_two_fast_ones_is_sent(place: Installation) -> None:
    """The row that becomes visible after its successors were sent and deleted is sent all the same."""

    def message(name: bytes) -> bytes:
        return encode_outbox([Outgoing(ORDERS.name, 0, None, name, [])])

    pool = await asyncpg.create_pool(place.postgres, min_size=1, max_size=4)
    stopping = asyncio.Event()
    relay = Relay(place.kafka, "relay", pool, asyncio.Event(), lambda: None)
    insert = "INSERT INTO outbox (messages) VALUES ($1)"
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run(stopping))
        async with pool.acquire() as slow, pool.acquire() as fast:
            await fast.execute(insert, message(b"first"))
            begun = slow.transaction()
            await begun.start()
            await slow.execute(insert, message(b"slow"))
            await fast.execute(insert, message(b"third"))
            await until(lambda: sent(place, b"first", b"third"), "the fast ones")
            await until(lambda: empty(place), "deleted")
            await begun.commit()
            await until(lambda: sent(place, b"first", b"third", b"slow"), "the slow one")
            await until(lambda: empty(place), "deleted")
        stopping.set()
    await pool.close()


async def sent(place: Installation, *wanted: bytes) -> bool:
    """Whether exactly these stand on `orders`."""
    return place.values(ORDERS.name) == list(wanted)


async def test_one_trace_runs_through_the_compensation(place: Installation, tmp_path: Path) -> None:
    """The row, the payment and the release are spans of the buyer's trace, and the release request carries it on."""
    place.log.append(1, [listed()], [reserved("p1", 1, method="declined", traceparent=TRACEPARENT)])
    spans = tmp_path / f"{secrets.token_hex(4)}.jsonl"
    async with place.writer(span_file=str(spans)) as task:
        await until(lambda: has(place, status="released"), "released", task=task)
        await until(lambda: empty(place), "sent", task=task)
    written = [json.loads(line) for line in spans.read_text().splitlines()]
    ours = [span for span in written if span["trace_id"] == TRACEPARENT[3:35]]
    assert {span["name"] for span in ours} == {"write order", "pay", "release order"}
    assert {span["parent_id"] for span in ours} == {TRACEPARENT[36:52]}
    [batch] = [span for span in written if span["name"] == "process decisions"]
    assert [link["trace_id"] for link in batch["links"]] == [TRACEPARENT[3:35]]
    [(_, request)] = place.requests()
    assert isinstance(request, ReleaseRequested)
    assert request.traceparent == TRACEPARENT
    assert DECISIONS.name == batch["attributes"]["messaging.destination.name"]
