"""A purchase that was rejected, and reserved once the inventory had forgotten that; and one that is reserved twice."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from msgspec.structs import replace

from eventlog.reader import Progress
from order_writer.consume import decisions
from order_writer.consume.commands import Commands, sweep_pending
from order_writer.consume.progress_consumer import Move
from order_writer.restore.recover import LIFT
from order_writer.saga.decision_batch import Batch, Record
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.codec import encode
from stampede_schemas.decisions import Rejected, Reserved
from stampede_schemas.identifiers import Position, RequestId, WriterEpoch
from stampede_schemas.order_commands import CancelRequested, PaymentReported, RefundReported
from stampede_schemas.order_events import OrderConfirmed
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, ORDERS, REQUESTS
from tests.support.builders.orders import (
    Installation,
    applied,
    applied_until,
    applying_again_changes_nothing,
    empty,
    listed,
    rejected,
    reserved,
    until,
    waiting_messages,
)
from tests.support.builders.reports import cancelled, paid, refunded

HERE = 3  # the partition of the purchases in tests without a log
LONG_AGO = datetime.now(UTC) - timedelta(days=1)  # by a broker whose clock is a day behind

CANCEL, PAID, REFUNDED = cancelled(), paid(), refunded()
Command = CancelRequested | PaymentReported | RefundReported


async def row(place: Installation, purchase_id: str = "p1") -> dict[str, object]:
    """One purchase; empty while there is none."""
    found = await place.rows("SELECT * FROM purchases WHERE purchase_id = $1", purchase_id)
    return dict(found[0]) if found else {}


def given_back(place: Installation) -> list[tuple[str, Position, str]]:
    """The releases that were requested."""
    return [(r.purchase_id, r.reservation, r.reason) for _, r in place.requests() if isinstance(r, ReleaseRequested)]


def counted(metrics: str) -> dict[str, float]:
    """`stampede_orders_total` by status."""
    lines = [line for line in metrics.splitlines() if line.startswith("stampede_orders_total{")]
    return {line.split('status="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


@pytest.mark.parametrize("payment", ["simulated", "none"])
async def test_a_rejected_purchase_that_is_reserved_later_is_sold(place: Installation, payment: str) -> None:
    """It takes the place of the rejection, with body and position of its own, and is paid, published and counted like
    any other; lists keep it where it was. Another rejection changes nothing."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place.log.append(5, [listed()], [rejected("p1", method="declined"), rejected("p2", reason="buyer_limit")])
    async with place.writer(payment=payment, ops_port=port) as task:
        await until(lambda: applied(place, 5, 2), "rejected", task=task)
        first = [await row(place, name) for name in ("p1", "p2")]
        assert [(it["status"], it["version"], it["reason"]) for it in first] == [
            ("rejected", 1, "sold_out"),
            ("rejected", 1, "buyer_limit"),
        ]
        [_, sale] = place.log.append(5, [rejected("p2")], [rejected("p1"), reserved("p1", 1, quantity=3)])
        sold = "SELECT true FROM purchases WHERE status = 'confirmed'"
        await until(lambda: place.value(sold), "sold", task=task)
        await until(lambda: empty(place), "sent", task=task)
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    assert counted(metrics) == {"rejected": 2, "reserved": 1, "confirmed": 1}
    now = await row(place)
    assert (now["version"], now["reason"], now["quantity"], now["payment_method"]) == (3, None, 3, "ok")
    assert (now["partition"], now["source_offset"], now["source_index"]) == (5, sale, 1)
    assert (now["reservation_no"], now["unit_price_minor"], now["hold_until"] is not None) == (1, 4_200, True)
    assert now["created_at"] == first[0]["created_at"]
    assert now["updated_at"] != first[0]["updated_at"]
    assert await row(place, "p2") == first[1]
    paid = [tuple(it) for it in await place.rows("SELECT purchase_id, state FROM payments")]
    assert paid == ([("p1", "approved")] if payment == "simulated" else [])
    [event] = place.events()
    assert isinstance(event, OrderConfirmed)
    assert (event.purchase_id, event.version, event.quantity) == ("p1", 3, 3)
    assert event.reservation == Position(5, sale, 1)


async def test_a_log_with_a_revived_purchase_applied_again_changes_nothing(place: Installation) -> None:
    """Also its rejection, which is read once more before the reservation that stands in its place."""
    place.log.append(5, [listed()], [rejected("p1")], [reserved("p1", 1)], [rejected("p2")])
    async with place.writer() as task:
        await until(lambda: place.value("SELECT true FROM purchases WHERE status = 'confirmed'"), "sold", task=task)
        await until(lambda: empty(place), "sent", task=task)
    await applying_again_changes_nothing(place, 5, 4)


@pytest.mark.parametrize("apart", [True, False], ids=["a later batch", "the same record"])
async def test_a_second_reservation_in_one_partition_stops_it(place: Installation, apart: bool) -> None:
    """The fold remembers what it reserved, so it is broken: nothing of that batch is committed, the other partitions
    go on, also after a restart."""
    place.log.append(0, [listed()])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 0, 1), "running", task=task)
        if apart:
            place.log.append(0, [reserved("p1", 1)])
            await until(lambda: applied(place, 0, 2), "sold", task=task)
        again = [reserved("p1", 2), reserved("p2", 3)]
        place.log.append(0, again if apart else [reserved("p1", 1), *again])
        why = "SELECT stopped FROM progress WHERE partition = 0"
        await until(lambda: place.value(why), "the reason is stored", task=task)
        assert "reserved twice" in str(await place.value(why))
        place.log.append(1, [listed("sock")], [reserved("p3", 1, product_id="sock")])
        await until(lambda: applied(place, 1, 2), "the others go on", task=task)
    assert sorted(await place.statuses()) == (["p1", "p3"] if apart else ["p3"])
    async with place.writer(payment="none") as task:
        place.log.append(1, [reserved("p4", 2, product_id="sock")])
        await until(lambda: applied(place, 1, 3), "sold after a restart", task=task)
        assert await applied(place, 0, 1 + apart)
        assert given_back(place) == []


async def test_a_reservation_of_an_older_id_in_another_partition_changes_nothing(place: Installation) -> None:
    """Such an id named no product. The first reservation keeps the row, and no release is requested: the
    log that is followed anew holds the release of the second."""
    place.log.append(0, [listed("shoe")], [reserved("p1", 1)])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 0, 2), "the first", task=task)
        place.log.append(7, [reserved("p1", 1, product_id="sock"), reserved("p2", 2, product_id="sock")])
        await until(lambda: applied(place, 7, 1), "the second", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert await place.statuses() == {"p1": "confirmed", "p2": "confirmed"}
    assert given_back(place) == []
    assert sorted(event.product_id for event in place.events()) == ["shoe", "sock"]


async def test_a_refused_reservation_takes_the_place_of_its_rejection(place: Installation) -> None:
    """As a placeholder: released, published at version 3, given back once, one dead letter. And a placeholder of a
    refused rejection gives way to the reservation."""
    place.log.append(5, [listed()], [rejected("p1"), rejected("p2", method="o\0k")])
    async with place.writer() as task:
        await until(lambda: applied(place, 5, 2), "rejected", task=task)
        [sale] = place.log.append(5, [reserved("p1", 1, method="o\0k"), reserved("p2", 2)])
        await until(lambda: place.value("SELECT true FROM purchases WHERE status = 'confirmed'"), "p2", task=task)
        await until(lambda: empty(place), "sent", task=task)
    found = [(it["status"], it["version"], it["reason"]) for it in [await row(place), await row(place, "p2")]]
    assert found == [("released", 3, "row_error"), ("confirmed", 3, None)]
    assert given_back(place) == [("p1", Position(5, sale, 0), "row_error")]
    assert sorted((event.purchase_id, event.version) for event in place.events()) == [("p1", 3), ("p2", 3)]
    assert len(place.values(DEAD_LETTERS.name)) == 2


class Logs:
    """Both topics of one purchase, played without a broker: what a writer has read of each."""

    def __init__(self, place: Installation, units: UnitsOfWork) -> None:
        self._place, self._units, self._decisions, self._commands = place, units, 0, 0

    async def begin(self) -> None:
        """Nothing is read yet."""
        await self._place.rows("INSERT INTO progress VALUES ($1, 0, -1, '', -1, 'id')", HERE)
        await self._place.rows("INSERT INTO command_progress VALUES (0, 0, 'id')")

    async def decide(self, decision: Reserved | Rejected) -> None:
        """The next record of `decisions` is applied."""
        at, batch = self._decisions, Batch()
        self._decisions += 1
        batch.add(HERE, at, [decision])
        async with self._units.open() as unit:
            moves = {HERE: Move(at, Progress(at + 1, at, WriterEpoch("l"), at))}
            await decisions.apply(unit, moves, batch, unpaid=False)

    async def command(self, command: Command) -> None:
        """The next record of `order-commands` is applied."""
        at = self._commands
        self._commands += 1
        record = Record(encode(command), 0, at, LONG_AGO)
        await Commands(self._units).apply([record], {0: Move(at, Progress(at + 1))})

    async def sweep(self) -> object:
        """Sweep the pending commands; how many still are."""
        await sweep_pending(self._units)
        return await self._place.value("SELECT count(*) FROM pending_commands")


@pytest.fixture
async def logs(quiet: Installation, units: UnitsOfWork) -> Logs:
    """A purchase `p1` that was rejected."""
    made = Logs(quiet, units)
    await made.begin()
    await made.decide(rejected("p1"))
    return made


@pytest.mark.parametrize("first", ["decision", "command"])
@pytest.mark.parametrize(("command", "status"), [(CANCEL, "released"), (PAID, "confirmed")])
async def test_a_command_is_not_lost_whichever_topic_is_read_first(
    quiet: Installation, logs: Logs, first: str, command: Command, status: str
) -> None:
    """Its sender was told of the reservation. Read before it, the command waits, however often it is swept,
    until that partition of `decisions` is applied beyond the moment it came."""
    if first == "decision":
        await logs.decide(reserved("p1", 1))
        await logs.command(command)
    else:
        await applied_until(quiet, DECISIONS.name, 0.0)
        await logs.command(command)
        await applied_until(quiet, DECISIONS.name, 3_600.0, HERE)  # of the other partitions
        assert await logs.sweep() == 1
        assert await quiet.statuses() == {"p1": "rejected"}
        await logs.decide(reserved("p1", 1))
        assert await logs.sweep() == 0
    assert [(it["status"], it["version"]) for it in [await row(quiet)]] == [(status, 3)]


async def test_commands_on_a_rejected_purchase_are_handled(quiet: Installation, logs: Logs) -> None:
    """Once no reservation can be on its way: a cancellation does nothing, money goes back, and that report is
    handled. None is a dead letter."""
    await applied_until(quiet, DECISIONS.name, 0.0)
    await logs.command(CANCEL)
    await logs.command(PAID)
    assert await logs.sweep() == 2
    before = await row(quiet)
    await applied_until(quiet, DECISIONS.name, 0.0)
    assert await logs.sweep() == 0
    assert await row(quiet) == before
    payments = "SELECT state || ' ' || captured FROM payments"
    assert await quiet.value(payments) == "void_due true"
    await logs.command(REFUNDED)
    assert await logs.sweep() == 1
    assert await quiet.value(payments) == "void_due true"
    await applied_until(quiet, DECISIONS.name, 0.0)
    assert await logs.sweep() == 0
    assert await quiet.value(payments) == "voided true"
    assert await empty(quiet)


async def test_a_rejection_in_a_restored_copy_gives_way_above_what_was_told(quiet: Installation, logs: Logs) -> None:
    """The world knows the purchase as confirmed, version 3; the copy is of before its reservation."""
    await quiet.rows("INSERT INTO published VALUES ('p1', 3)")
    await quiet.rows(LIFT)  # as `recover` does
    versions = [(await row(quiet))["version"]]
    await logs.decide(reserved("p1", 1))
    versions.append((await row(quiet))["version"])
    await logs.command(PAID)
    versions.append((await row(quiet))["version"])
    assert (await row(quiet))["status"] == "confirmed"
    assert versions == [4, 5, 6]


async def test_what_was_refunded_is_not_sold(quiet: Installation, logs: Logs) -> None:
    """The payment of a rejected purchase was voided: its reservation ends at once, and a repeated report of the same
    money confirms nothing."""
    await logs.command(PAID)
    await applied_until(quiet, DECISIONS.name, 0.0)
    assert await logs.sweep() == 0
    await logs.decide(reserved("p1", 1))
    now = await row(quiet)
    assert (now["status"], now["reason"], now["version"]) == ("released", "payment_declined", 3)
    topics = {message.topic for message in await waiting_messages(quiet)}
    assert topics == {REQUESTS.name, ORDERS.name}
    await logs.command(replace(PAID, report_id=RequestId("again")))
    now = await row(quiet)
    assert (now["status"], now["refund"], now["version"]) == ("released", "due", 4)


async def test_a_command_that_is_sent_again_waits_anew(quiet: Installation, logs: Logs) -> None:
    """The second sender may know of a later decision than the first did."""
    await logs.command(CANCEL)
    await applied_until(quiet, DECISIONS.name, 0.0)
    await logs.command(CANCEL)
    assert await logs.sweep() == 1
    await logs.decide(reserved("p1", 1))
    assert await logs.sweep() == 0
    assert await quiet.statuses() == {"p1": "released"}


async def test_a_running_writer_settles_a_command_on_a_rejected_purchase(place: Installation) -> None:
    """By its own samples of how far the log is applied, within seconds."""
    place.log.append(5, [listed()], [rejected("p1")])
    async with place.writer(payment="webhook") as task:
        await until(lambda: applied(place, 5, 2), "rejected", task=task)
        await asyncio.to_thread(place.command, PAID)
        void = "SELECT true FROM payments WHERE state = 'void_due' AND captured"
        await until(lambda: place.value(void), "the refund is due", task=task)
        assert await place.value("SELECT count(*) FROM pending_commands") == 0
    assert await place.statuses() == {"p1": "rejected"}
