"""The order-writer on a real log and a real database: what was decided becomes rows, once, whatever dies."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable

import asyncpg
import httpx
import pytest

from devstack.ports import anywhere, is_free
from eventlog.reader import LogBroken
from stampede_schemas.codec import encode_decisions
from stampede_schemas.decisions import AnyDecision
from stampede_schemas.identifiers import Millis, Position, WriterEpoch
from stampede_schemas.order_events import OrderConfirmed, OrderReleased
from stampede_schemas.requests import ReleaseRequested
from tests.support.orders import (
    TRACEPARENT,
    Installation,
    applied,
    applying_again_changes_nothing,
    empty,
    listed,
    new_topics,
    rejected,
    released,
    reserved,
    restocked,
    until,
)
from tests.support.stack import LocalStack

pytestmark = pytest.mark.own_servers  # the database is killed


def writer_process(place: Installation, **env: str) -> "subprocess.Popen[bytes]":
    """A writer that can be killed."""
    where = {"STAMPEDE_KAFKA": place.kafka, "STAMPEDE_POSTGRES": place.postgres}
    command = [sys.executable, "-m", "order_writer"]
    return subprocess.Popen(command, env=os.environ | where | env, stdout=subprocess.DEVNULL)


async def settled(place: Installation, count: int) -> bool:
    """Whether so many purchases are confirmed or released."""
    return await place.value("SELECT count(*) FROM purchases WHERE status IN ('confirmed', 'released')") == count


def fill(place: Installation, records: int, each: int = 20, partitions: int = 4) -> int:
    """A prefilled log, each record with a restock of one; how many purchases that are."""
    for n in range(partitions):
        name = f"shoe-{n}"
        sale: list[list[AnyDecision]] = [
            [restocked(name), *(reserved(f"{n}-{r}-{i}", r * each + i + 1, product_id=name) for i in range(each))]
            for r in range(records)
        ]
        place.log.append(n, [listed(name, 10**6)], *sale)
    return records * each * partitions


async def everything_once(place: Installation, total: int, restocks: int = 0) -> None:
    """Every purchase is confirmed at version 3, its event stands on `orders`, and every restock counts once."""
    assert {row["stock"] - 10**6 for row in await place.rows("SELECT stock FROM products")} == {restocks}
    assert await place.value("SELECT count(*) FROM purchases WHERE status = 'confirmed' AND version = 3") == total
    events = place.events()
    assert {event.version for event in events} == {3}
    assert len({event.purchase_id for event in events}) == total


async def test_a_sale_becomes_rows_products_and_events(place: Installation) -> None:
    """Approved is confirmed, declined goes back to the inventory and the world, sold out is a rejected row."""
    [_, sale] = place.log.append(
        3,
        [listed(stock=4)],
        [
            reserved("ok", 1, available=2, traceparent=TRACEPARENT),
            reserved("bad", 2, method="declined"),
            rejected("late"),
        ],
    )
    async with place.writer() as task:
        await until(lambda: settled(place, 2), "both payments settled", task=task)
        assert await place.statuses() == {"ok": "confirmed", "bad": "released", "late": "rejected"}
        await until(lambda: empty(place), "the outbox is sent", task=task)
        place.log.append(3, [released("bad", Position(3, sale, 1))])
        back = "SELECT stock_returned_at FROM purchases WHERE purchase_id = 'bad'"
        await until(lambda: place.value(back), "stock returned", task=task)
        [product] = await place.rows("SELECT * FROM products")
        assert (product["stock"], product["available"], product["status"]) == (4, 2, "open")
        await until(lambda: place.value("SELECT true FROM payments WHERE state = 'voided'"), "the void", task=task)
    [row] = await place.rows("SELECT * FROM purchases WHERE purchase_id = 'bad'")
    assert (row["reason"], row["version"], row["refund"], row["reservation_no"]) == ("payment_declined", 3, "none", 2)
    assert (row["partition"], row["source_offset"], row["source_index"]) == (3, sale, 1)
    assert await place.value("SELECT trace_id FROM purchases WHERE purchase_id = 'ok'") == TRACEPARENT[3:35]
    [(partition, request)] = place.requests()
    assert partition == 3
    assert isinstance(request, ReleaseRequested)
    assert (request.reservation, request.reason) == (Position(3, sale, 1), "payment_declined")
    events = {str(event.purchase_id): event for event in place.events()}
    assert isinstance(events["ok"], OrderConfirmed)
    assert isinstance(events["bad"], OrderReleased)
    assert len(place.events()) == 2


async def test_void_records_change_nothing(place: Installation) -> None:
    """A foreign load, a repeated answer and garbage move the progress and nothing else."""
    place.log.append(0, [listed()], [reserved("p1", 1)])
    ghost = encode_decisions(2, 0, WriterEpoch("f" * 32), 0, Millis(0), [reserved("ghost", 2)])
    again = encode_decisions(1, 0, place.log.load, 0, Millis(0), [reserved("again", 2)])
    place.log.append_raw(0, ghost, again, b"\x00garbage")
    place.log.append(0, [reserved("p2", 2)])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 0, 6), "all records applied", task=task)
        assert await place.statuses() == {"p1": "confirmed", "p2": "confirmed"}


async def test_redelivery_changes_nothing(place: Installation) -> None:
    """The whole log applied a second time to the same rows: equal rows, no event, no payment, nothing given back."""
    place.log.append(0, [listed()], [reserved("p1", 1), rejected("p3")], [reserved("p2", 2, method="declined")])
    async with place.writer() as task:
        await until(lambda: settled(place, 2), "settled", task=task)
        await until(lambda: place.value("SELECT true FROM payments WHERE state = 'voided'"), "voided", task=task)
        await until(lambda: empty(place), "sent", task=task)
    await applying_again_changes_nothing(place, 0, 3)


async def test_a_killed_writer_goes_on_at_the_progress_in_postgres(place: Installation) -> None:
    """kill -9 in the middle, then a start with the group's offsets gone: every purchase once, nothing again."""
    total = fill(place, 200)
    process = writer_process(place, STAMPEDE_PAYMENT="none")
    try:
        await until(lambda: place.value("SELECT count(*) > 1000 FROM purchases"), "a part is written", 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < int(str(await place.value("SELECT count(*) FROM purchases"))) <= total
    async with place.writer(group="a-group-that-committed-nothing", payment="none") as task:
        await until(lambda: settled(place, total), "the rest", 30, task)
        await until(lambda: empty(place), "sent", task=task)
    await everything_once(place, total, 200)


async def batches(ops_port: int) -> float:
    """How many batches of decisions a writer has written; 0 before it can be asked."""
    try:
        async with httpx.AsyncClient() as http:
            told = (await http.get(f"http://127.0.0.1:{ops_port}/metrics")).text
    except httpx.TransportError:
        return 0
    return float(told.partition("\nstampede_order_batch_seconds_count ")[2].split()[0])


async def sell_until(
    place: Installation, partitions: int, enough: Callable[[], Awaitable[bool]], task: "asyncio.Task[None]"
) -> int:
    """Restock and sell once in each filled partition, again and again until it is enough; how often."""
    times = 0

    async def once_more() -> bool:
        nonlocal times
        times += 1
        for n in range(partitions):
            name = f"shoe-{n}"
            sale: list[AnyDecision] = [
                restocked(name),
                reserved(f"late-{n}-{times}", 10**6 + times, product_id=name),
            ]
            await asyncio.to_thread(place.log.append, n, sale)
        return await enough()

    await until(once_more, "enough is sold", 60, task)
    return times


async def test_two_writers_of_the_same_partitions_write_everything_once(place: Installation) -> None:
    """Two groups, so that both own all of it; both have read a record before either may write it: one of them does."""
    total, races = fill(place, 1), 10
    both = "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    connection = await asyncpg.connect(place.postgres)
    async with place.writer("a", group="a", payment="none") as a, place.writer("b", group="b", payment="none") as b:
        await until(lambda: settled(place, total), "running", 60, a)
        for n in range(races):
            async with connection.transaction():
                await connection.execute("SELECT FROM progress WHERE partition = 0 FOR UPDATE")
                sale: list[AnyDecision] = [restocked("shoe-0"), reserved(f"race-{n}", 1_000 + n, product_id="shoe-0")]
                await asyncio.to_thread(place.log.append, 0, sale)
                await until(lambda: place.value(both), "both wait to write it", task=b)
        await until(lambda: settled(place, total + races), "all rows", 30, b)
        await until(lambda: empty(place), "sent", task=a)
        assert not a.done()
        assert not b.done()
    await connection.close()
    assert await place.value("SELECT stock FROM products WHERE product_id = 'shoe-0'") == 10**6 + 1 + races
    assert {event.version for event in place.events()} == {3}
    assert len(place.events()) == total + races


async def test_a_second_member_shares_the_partitions(place: Installation) -> None:
    """Partitions move between members of the group in mid-sale without loss or repetition."""
    total = fill(place, 60, partitions=12)
    port = next(port for port in anywhere() if is_free(port))

    async def shared() -> bool:
        return await batches(port) >= 5

    async with place.writer("a", payment="none") as a:
        await until(lambda: place.value("SELECT count(*) > 0 FROM purchases"), "a began", task=a)
        async with place.writer("b", payment="none", ops_port=port):
            times = await sell_until(place, 12, shared, a)
            total += 12 * times
            await until(lambda: settled(place, total), "all rows", 60, a)
            await until(lambda: empty(place), "all events", 60, a)
    await everything_once(place, total, 60 + times)


async def test_a_killed_database_loses_nothing(place: Installation, servers: LocalStack) -> None:
    """Postgres dies by kill -9 while decisions flow: the writer waits for it, drops nothing and releases nothing."""
    place.log.append(0, [listed(stock=10**6)])
    async with place.writer() as task:
        await until(lambda: applied(place, 0, 1), "running", task=task)
        pid = servers.kill("postgres")
        place.log.append(0, *[[reserved(f"p{i}", i + 1)] for i in range(300)])
        await asyncio.to_thread(servers.await_restart, "postgres", pid)
        await until(lambda: reachable(place), "Postgres is back")
        await until(lambda: settled(place, 300), "all rows", 60, task)
        await until(lambda: empty(place), "sent", 30, task)
    await everything_once(place, 300)
    assert place.requests() == []


async def reachable(place: Installation) -> bool:
    """Whether the database takes connections."""
    try:
        return await place.value("SELECT true") is True
    except (OSError, asyncpg.PostgresError):
        return False


async def test_a_topic_made_anew_stops_the_writer(place: Installation) -> None:
    """Rows of another log are not continued: one sentence, and the process ends."""
    place.log.append(0, [listed()], [reserved("p1", 1)])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 0, 2), "applied", task=task)
    await asyncio.to_thread(new_topics, place.kafka)
    with pytest.raises(LogBroken, match="recreated"):
        async with place.writer(payment="none") as task:
            await task


async def test_a_topic_made_anew_under_a_running_writer_stops_it(place: Installation) -> None:
    """It does not go on reading another log at its old offset."""
    place.log.append(0, [listed()], [reserved("p1", 1)])
    with pytest.raises(LogBroken, match=r"recreated|no longer holds|lost its tail"):  # noqa: PT012 - the end of the block
        async with place.writer(payment="none") as task:
            await until(lambda: applied(place, 0, 2), "applied", task=task)
            await asyncio.to_thread(new_topics, place.kafka)
            async with asyncio.timeout(30):
                await asyncio.shield(task)
    assert await place.statuses() == {"p1": "confirmed"}
