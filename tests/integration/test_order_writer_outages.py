"""Postgres is unavailable, hangs, locks, refuses or breaks off at a COMMIT: the order-writer waits, and then goes on.

Nothing is dead-lettered, nothing is released, nothing is written twice, and what waits, waits in Kafka. Longer ones:
`python -m tests.chaos.outages`.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import asyncpg
import psutil
import pytest

from eventlog.kafka import consumer, read_range, watermarks
from order_writer.restore.restore_guard import COMMITTED_S_MAX
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS, ORDERS, Topic, partition_of
from tests.support.builders.orders import Installation, until
from tests.support.builders.reports import all_of
from tests.support.faults.outages import EACH, at_rest, nothing_lost_or_undone, sell, stored, through
from tests.support.faults.proxy import POSTGRES_COMMIT, POSTGRES_COMMITTED, Proxy, Way, proxy
from tests.support.processes.stack import LocalStack

pytestmark = pytest.mark.own_servers  # Postgres is frozen and cut off

RSS_GROWTH_MIB_MAX = 48  # what the client may hold ahead is 16 MiB


@pytest.fixture
def between(servers: LocalStack) -> Iterator[Proxy]:
    """What writers meet instead of Postgres."""
    with proxy(int(servers.postgres.rpartition(":")[2].partition("/")[0])) as made:
        yield made


CUTS = {
    "COMMIT never arrives": (POSTGRES_COMMIT, Way.TO_SERVER, False),
    "COMMIT arrives, its sender does not learn it": (POSTGRES_COMMIT, Way.TO_SERVER, True),
    "the answer is lost": (POSTGRES_COMMITTED, Way.TO_CLIENT, False),
    "the answer arrives, and nothing after it": (POSTGRES_COMMITTED, Way.TO_CLIENT, True),
}


async def test_an_event_stands_where_its_key_belongs(place: Installation) -> None:
    """The client places it in C: by the same rule as everybody's, or its reader would look elsewhere."""
    sell(place, 0, 10)
    async with place.writer() as task:
        await until(lambda: at_rest(place, 10 * EACH), "all published", task=task)
    client = consumer(place.kafka)
    try:
        places = {
            (message.key() or b"").decode(): partition
            for partition in range(ORDERS.partitions)
            for message in read_range(client, ORDERS.name, partition, *watermarks(client, ORDERS.name, partition))
        }
    finally:
        client.close()
    assert len(places) == 10 * EACH
    assert places == {key: partition_of(key) for key in places}


async def test_a_connection_cut_at_commit(place: Installation, between: Proxy) -> None:
    """On either side of any COMMIT: committed or not, every purchase is stored once and published."""
    sell(place, 0, 1)
    records = 1
    async with place.writer(postgres=through(between, place)) as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        for name, (pattern, way, delivered) in CUTS.items():
            for passing in (0, 1):
                trap = between.trap(pattern, way, delivered=delivered, lets_pass=passing)
                sell(place, records, 1)
                records += 1
                assert await asyncio.to_thread(trap.wait, 20), name
            await until(partial(at_rest, place, records * EACH), name, 40, task)
    nothing_lost_or_undone(place, records * EACH)
    assert await place.value("SELECT count(*) FROM purchases WHERE version <> 3") == 0


async def test_postgres_gone_for_seconds(place: Installation, between: Proxy) -> None:
    """It refuses, it breaks off again and again, it is silent: what is sold meanwhile is stored soon after."""
    sell(place, 0, 1)
    records = 1
    async with place.writer(postgres=through(between, place)) as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        for fault in (between.refuse, between.cut, between.stall):
            fault()
            sell(place, records, 50)
            for _ in range(10):
                await asyncio.sleep(0.15)  # for how long it is unavailable, not for something to happen
                if fault == between.cut:
                    between.cut()
            if fault != between.cut:
                assert await stored(place, records * EACH)
            between.heal()
            records += 50
            await until(partial(at_rest, place, records * EACH), "the backlog", 40, task)
    nothing_lost_or_undone(place, records * EACH)


async def test_a_frozen_postgres(place: Installation, servers: LocalStack) -> None:
    """SIGSTOP of the server and all its backends: they neither answer nor refuse."""
    sell(place, 0, 1)
    async with place.writer() as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        with _frozen(psutil.Process(int(servers.status()["postgres"]["pid"]))):
            sell(place, 1, 50)
            await asyncio.sleep(3)  # for how long it is frozen
        await until(lambda: at_rest(place, 51 * EACH), "the backlog", 40, task)
    nothing_lost_or_undone(place, 51 * EACH)


async def test_a_frozen_broker_while_postgres_breaks_off(
    place: Installation, between: Proxy, servers: LocalStack
) -> None:
    """What was in hand is dropped, and where to go on cannot be learnt for more than a time-out: it is waited for."""
    sell(place, 0, 1)
    async with place.writer(postgres=through(between, place)) as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        other = await asyncpg.connect(place.postgres)
        async with other.transaction():
            await other.execute("LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE")
            sell(place, 1, 1)
            await until(lambda: _writer_waits(place), "a transaction in hand", task=task)
            with _frozen(psutil.Process(int(servers.status()["kafka"]["pid"]))):
                between.cut()
                await asyncio.sleep(COMMITTED_S_MAX + 2)  # for how long it is frozen
        await other.close()
        await until(lambda: at_rest(place, 2 * EACH), "the rest", 60, task)
    nothing_lost_or_undone(place, 2 * EACH)


@contextmanager
def _frozen(server: psutil.Process) -> Iterator[None]:
    """A server and its backends; the first is stopped first, so that no more of them come."""
    with ExitStack() as thawing:
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # a vacuum worker lives for moments
                process.suspend()
                thawing.callback(process.resume)
        yield


async def test_a_locked_table(place: Installation) -> None:
    """A lock held longer than the order-writer waits for one: it comes again, and nothing is lost."""
    sell(place, 0, 1)
    async with place.writer() as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        other = await asyncpg.connect(place.postgres)
        try:
            async with other.transaction():
                await other.execute("LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE")
                sell(place, 1, 10)
                await until(lambda: _writer_waits(place), "the writer waits", task=task)
                await until(lambda: _writer_waits(place, 0), "the writer waits no more", task=task)
                await until(lambda: _writer_waits(place), "it waits again", task=task)
        finally:
            await other.close()
        await until(lambda: at_rest(place, 11 * EACH), "the backlog", 40, task)
    nothing_lost_or_undone(place, 11 * EACH)


async def _writer_waits(place: Installation, count: int = 1) -> bool:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        " AND query LIKE '%INSERT INTO purchases%'"
    )
    return bool(await place.value(waiting) == count)


async def test_a_deadlock_and_serialization_errors(place: Installation) -> None:
    """Postgres picks the writer as the victim of a deadlock, then refuses it some times: it comes again each time."""
    sell(place, 0, 1)
    async with place.writer() as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        other = await asyncpg.connect(place.postgres, server_settings={"deadlock_timeout": "60s"})
        try:
            async with other.transaction():
                # The writer holds its progress and wants the product; the other way round here.
                await other.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
                sell(place, 1, 1)
                await until(lambda: _progress_is_locked(place), "the writer holds its progress", task=task)
                await other.execute("SELECT FROM progress FOR UPDATE")
            assert await _deadlocks(place) == 1
            await other.execute("CREATE SEQUENCE refusals")
            await other.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF nextval('refusals') < 3 THEN RAISE 'not now' USING ERRCODE = 'serialization_failure'; END IF;"
                " RETURN NULL; END $$"
            )
            await other.execute("CREATE TRIGGER refuse AFTER INSERT ON purchases EXECUTE FUNCTION refuse()")
        finally:
            await other.close()
        sell(place, 2, 5)
        await until(lambda: at_rest(place, 7 * EACH), "the backlog", 40, task)
        assert await place.value("SELECT last_value FROM refusals") >= 3  # type: ignore[operator]
    nothing_lost_or_undone(place, 7 * EACH)


async def test_a_database_that_is_read_only_for_a_while(place: Installation) -> None:
    """A standby, or a managed database whose disk is full: it answers, and takes nothing."""
    database = place.postgres.rpartition("/")[2]
    sell(place, 0, 1)
    async with place.writer() as task:
        await until(lambda: at_rest(place, EACH), "running", task=task)
        await place.rows(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = $1"
        await place.rows(ended, database)
        sell(place, 1, 10)
        refused = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        before = int(str(await place.value(refused)))

        async def several() -> bool:
            return int(str(await place.value(refused))) > before + 3

        await until(several, "refused several times", task=task)
        server = await asyncpg.connect(place.postgres, server_settings={"default_transaction_read_only": "off"})
        try:
            await server.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        finally:
            await server.close()
        await place.rows(ended, database)
        await until(lambda: at_rest(place, 11 * EACH), "the backlog", 40, task)
    nothing_lost_or_undone(place, 11 * EACH)


async def _progress_is_locked(place: Installation) -> bool:
    free = await place.rows("SELECT FROM progress FOR UPDATE SKIP LOCKED")
    return len(free) < int(str(await place.value("SELECT count(*) FROM progress")))


async def _deadlocks(place: Installation) -> object:
    await place.rows("SELECT pg_stat_clear_snapshot()")
    wanted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    await until(lambda: place.value(wanted), "the deadlock is counted")
    return await place.value(wanted)


async def test_without_postgres_it_holds_still_and_stays_in_its_group(place: Installation, between: Proxy) -> None:
    """Kafka is the buffer: 60 MB sold meanwhile do not pile up, and a second member gets its share of partitions, of
    the decisions and of the commands."""
    sell(place, 0, 1)
    env = {"STAMPEDE_KAFKA": place.kafka, "STAMPEDE_POSTGRES": through(between, place), "STAMPEDE_PAYMENT": "none"}
    command = [sys.executable, "-m", "order_writer"]
    process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await until(lambda: at_rest(place, EACH), "running", 30)
        before = psutil.Process(process.pid).memory_info().rss
        between.refuse()
        padding = b"\x00" * 100_000  # void records: nobody has to parse them
        for partition in range(12):
            place.log.append_raw(partition, *[padding] * 50)
        await asyncio.to_thread(place.command, all_of("another", 0))  # of no order
        assert await asyncio.to_thread(_joins, place.kafka, "order-writer", DECISIONS) > 0
        assert await asyncio.to_thread(_joins, place.kafka, "order-writer-commands", ORDER_COMMANDS) > 0
        growth = (psutil.Process(process.pid).memory_info().rss - before) / 2**20
        assert growth < RSS_GROWTH_MIB_MAX, f"{growth:.0f} MiB more"
        between.heal()
        sell(place, 1, 5)
        await until(lambda: at_rest(place, 6 * EACH), "the backlog", 60)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    nothing_lost_or_undone(place, 6 * EACH)


def _joins(kafka: str, group: str, topic: Topic) -> int:
    """Join a group and leave it again; how many partitions one gets: none while the other does not poll."""
    client = consumer(kafka, **{"group.id": group, "session.timeout.ms": 6_000})
    try:
        client.subscribe([topic.name])
        deadline = time.monotonic() + 15
        while not (mine := client.assignment()) and time.monotonic() < deadline:
            client.poll(0.1)
        return len(mine)
    finally:
        client.close()
