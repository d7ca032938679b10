"""A writer that freezes with a successor, a log that overrules its row, transactions that cross: all happens once."""

import asyncio
import socket
from pathlib import Path

import asyncpg
import httpx

from stampede_schemas.identifiers import Position, PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from tests.support.builders.orders import Installation, empty, listed, released, reserved, until
from tests.support.faults.mortal import freeze_and_succeed, settled


async def test_a_frozen_writer_has_a_successor_and_thaws_harmlessly(place: Installation, tmp_path: Path) -> None:
    """Between its UPDATE and COMMIT it holds the progress row: taken from it within seconds; thawed, it works on."""
    await freeze_and_succeed(place, tmp_path, "before COMMIT")


async def test_the_log_beats_the_row(place: Installation) -> None:
    """The log released what the row says is sold: it is not sold, its money goes back, and a metric counts it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    [_, sale] = place.log.append(2, [listed()], [reserved("p1", 1), reserved("p2", 2)])
    async with place.writer(ops_port=port) as task:
        await until(lambda: settled(place, 2), "sold", task=task)
        place.log.append(2, [released("p1", Position(2, sale, 0), reason="hold_expired")])
        row = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND status = 'released' AND refund = 'done'"
        await until(lambda: place.value(row), "released and refunded", task=task)
        async with httpx.AsyncClient() as http:
            told = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        assert "stampede_orders_overruled_total 1.0" in told
        await until(lambda: empty(place), "sent", task=task)
    [found] = await place.rows("SELECT * FROM purchases WHERE purchase_id = 'p1'")
    assert (found["reason"], found["version"], found["stock_returned_at"] is None) == ("hold_expired", 5, False)
    assert (await place.statuses())["p2"] == "confirmed"
    kinds = [(type(event).__name__, event.refund) for event in place.events() if event.purchase_id == "p1"]
    assert kinds == [("OrderConfirmed", "none"), ("OrderReleased", "due"), ("OrderRefunded", "done")]
    assert place.requests() == []  # the units are back already: no release is requested


async def test_a_command_that_crosses_its_row_is_handled(place: Installation) -> None:
    """The row is written and not committed when the command looks for it: each misses the other, and they meet."""
    place.log.append(2, [listed()], [reserved("p0", 1)])
    connection = await asyncpg.connect(place.postgres)
    async with place.writer() as task:
        await until(lambda: settled(place, 1), "running", task=task)
        async with connection.transaction():
            await connection.execute("LOCK TABLE products IN SHARE ROW EXCLUSIVE MODE")
            place.log.append(2, [reserved("p1", 2, method="unknown")])
            waiting = "SELECT true FROM pg_locks WHERE relation = 'products'::regclass AND NOT granted"
            await until(lambda: place.value(waiting), "the row is there, uncommitted", task=task)
            command = CancelRequested(request_id=RequestId("c1"), purchase_id=PurchaseId("p1"), actor="buyer-of-p1")
            await asyncio.to_thread(place.command, command)
            await until(lambda: place.value("SELECT true FROM pending_commands"), "pending", task=task)
            assert await place.statuses() == {"p0": "confirmed"}
        cancelled = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND reason = 'cancelled'"
        await until(lambda: place.value(cancelled), "handled", task=task)
    await connection.close()
