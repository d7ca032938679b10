"""Writers that die or freeze at named points with a successor, and transactions that cross: everything happens once."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from stampede_schemas.decisions import AnyDecision
from stampede_schemas.identifiers import Position, PurchaseId, RequestId
from stampede_schemas.orders import CancelRequested
from tests.chaos.builds.points import FOLDER, GROUP, arm, struck
from tests.support.orders import Installation, installation, listed, released, reserved, until
from tests.support.stack import LocalStack

POINTS = (
    "before COMMIT",
    "after COMMIT, before the offset",
    "before the outbox is sent",
    "after the outbox is sent",
)


@pytest.fixture
async def place(quiet_servers: LocalStack) -> AsyncIterator[Installation]:
    """New topics, new tables."""
    async with installation(quiet_servers.kafka, quiet_servers.postgres) as made:
        yield made


def mortal(place: Installation, folder: Path) -> "subprocess.Popen[bytes]":
    """A writer as a process, with crash points."""
    env = {
        "STAMPEDE_KAFKA": place.kafka,
        "STAMPEDE_POSTGRES": place.postgres,
        "STAMPEDE_PAYMENT": "none",
        "STAMPEDE_INSTANCE": "mortal",
        "STAMPEDE_SESSION_TIMEOUT_S": "6",
        FOLDER: str(folder),
    }
    inherited = {name: value for name, value in os.environ.items() if name != GROUP}
    command = [sys.executable, "-m", "tests.chaos.builds.order_writer"]
    return subprocess.Popen(command, env=inherited | env, stdout=subprocess.DEVNULL)


def sell(place: Installation, name: str, records: int = 20, each: int = 10, first: int = 1) -> int:
    """So many records of sales of one product on partition 2; how many orders that are."""
    sale: list[list[AnyDecision]] = [
        [reserved(f"{name}-{r}-{i}", first + r * each + i, product_id="shoe") for i in range(each)]
        for r in range(records)
    ]
    place.log.append(2, *sale)
    return records * each


async def struck_at(folder: Path) -> bool:
    """Whether the process has sent itself the signal."""
    return bool(struck(folder, "mortal"))


async def settled(place: Installation, count: int) -> bool:
    """Whether so many purchases are confirmed, and all that was to be sent is sent."""
    done = await place.value("SELECT count(*) FROM purchases WHERE status = 'confirmed'") == count
    return done and await place.value("SELECT count(*) FROM outbox") == 0


async def everything(place: Installation, total: int) -> None:
    """Each order confirmed at version 2 and told; told again only as what it was."""
    assert await place.value("SELECT count(*) FROM purchases WHERE status = 'confirmed' AND version = 2") == total
    events = await asyncio.to_thread(place.events)
    assert {event.version for event in events} == {2}
    assert len({event.purchase_id for event in events}) == total


async def test_a_writer_killed_at_each_point_is_continued(place: Installation, tmp_path: Path) -> None:
    """kill -9 before and after COMMIT, before and after sending: the next start goes on, nothing is lost or doubled."""
    place.log.append(2, [listed(stock=10**6)])
    total = 0
    for point in POINTS:
        total += sell(place, point.replace(" ", "-"), first=total + 1)
        arm(tmp_path, "mortal", point, 0)
        process = await asyncio.to_thread(mortal, place, tmp_path)
        try:
            await until(lambda: struck_at(tmp_path), f"struck {point}")
            assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
        finally:
            process.kill()
    async with place.writer("mortal", payment="none") as task:
        await until(lambda: settled(place, total), "the rest", task=task)
    await everything(place, total)


@pytest.mark.parametrize("point", ["before COMMIT", "before the outbox is sent"])
async def test_a_frozen_writer_has_a_successor_and_thaws_harmlessly(
    place: Installation, tmp_path: Path, point: str
) -> None:
    """Frozen between its UPDATE and COMMIT it holds the progress row, frozen with messages in hand it holds the
    lease: both are taken from it within seconds; thawed, it repeats nothing but messages, and works on."""
    place.log.append(2, [listed(stock=10**6)])
    total = sell(place, "first")
    arm(tmp_path, "mortal", point, 0, signal.SIGSTOP)
    process = await asyncio.to_thread(mortal, place, tmp_path)
    try:
        await until(lambda: struck_at(tmp_path), "frozen")
        async with place.writer("successor", group="successor", payment="none") as task:
            await until(lambda: settled(place, total), "the successor has done it", 15, task)
            total += sell(place, "second", first=total + 1)
            await until(lambda: settled(place, total), "and goes on", task=task)
            process.send_signal(signal.SIGCONT)
            total += sell(place, "third", first=total + 1)
            await until(lambda: settled(place, total), "both run", task=task)
        total += sell(place, "fourth", first=total + 1)
        await until(lambda: settled(place, total), "the thawed one works")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 15) == 0
    finally:
        process.kill()
        process.wait()
    await everything(place, total)


async def test_the_log_beats_the_row(place: Installation) -> None:
    """The log released what the row says is sold: it is not sold, its money goes back, and somebody is told."""
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
    assert (found["reason"], found["version"], found["stock_returned_at"] is None) == ("hold_expired", 4, False)
    assert (await place.statuses())["p2"] == "confirmed"
    kinds = [(type(event).__name__, event.refund) for event in place.events() if event.purchase_id == "p1"]
    assert kinds == [("OrderConfirmed", "none"), ("OrderReleased", "due"), ("OrderRefunded", "done")]
    assert place.requests() == []  # the units are back already: nothing is asked of the inventory


async def test_a_command_that_crosses_its_row_is_heard(place: Installation) -> None:
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
            await until(lambda: place.value("SELECT true FROM pending_commands"), "parked", 4, task)
            assert await place.statuses() == {"p0": "confirmed"}
        cancelled = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND reason = 'cancelled'"
        await until(lambda: place.value(cancelled), "heard", task=task)
    await connection.close()


async def empty(place: Installation) -> bool:
    """Whether all messages are sent."""
    return await place.value("SELECT count(*) FROM outbox") == 0
