"""Slower troubles with Postgres: one connection for everything, a writer frozen in the middle of its transaction."""

import os
import signal
import subprocess
import sys

import psutil

from tests.support.builders.orders import Installation, listed, reserved, until
from tests.support.faults.outages import EACH, at_rest, nothing_lost_or_undone, sell


async def test_too_many_connections(place: Installation) -> None:
    """One connection for all of a writer's loops: they take turns, and nobody starves."""
    role = f"few_{place.postgres.rpartition('/')[2]}"
    await place.rows(f"CREATE ROLE {role} LOGIN PASSWORD 'few' CONNECTION LIMIT 1")
    await place.rows(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        dsn = f"postgresql://{role}:few@{place.postgres.rpartition('@')[2]}"
        sell(place, 0, 20)
        async with place.writer(postgres=dsn) as task:
            await until(lambda: at_rest(place, 20 * EACH), "all", 60, task)
        nothing_lost_or_undone(place, 20 * EACH)
    finally:
        await until(lambda: _gone(place, role), "its sessions' end")
        await place.rows(f"DROP OWNED BY {role}")
        await place.rows(f"DROP ROLE {role}")


async def _gone(place: Installation, role: str) -> bool:
    return await place.value("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", role) == 0


async def test_a_writer_process_frozen_in_its_transaction(place: Installation) -> None:
    """SIGSTOP in the middle of its INSERT, a successor, SIGCONT: each purchase once, and the frozen one goes on."""
    place.log.append(0, [listed()])
    await place.rows(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('application_name') = 'order-writer/frozen' THEN PERFORM pg_sleep(1); END IF;"
        " RETURN NULL; END $$"
    )
    await place.rows("CREATE TRIGGER linger AFTER INSERT ON purchases EXECUTE FUNCTION linger()")
    env = {
        "STAMPEDE_KAFKA": place.kafka,
        "STAMPEDE_POSTGRES": place.postgres,
        "STAMPEDE_INSTANCE": "frozen",
        "STAMPEDE_PAYMENT": "none",
    }
    process = subprocess.Popen([sys.executable, "-m", "order_writer"], env=os.environ | env)  # noqa: ASYNC220
    lingers = (
        "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        " AND application_name = 'order-writer/frozen'"
    )
    try:
        await until(lambda: place.value("SELECT true FROM progress WHERE next_offset = 1"), "running", 30)
        place.log.append(0, [reserved("p1", 1), reserved("p2", 2)])
        await until(lambda: place.value(lingers), "in the middle of it")
        psutil.Process(process.pid).suspend()
        async with place.writer("next", group="another", payment="none") as task:
            await until(lambda: place.value("SELECT count(*) = 2 FROM purchases"), "the successor", 25, task)
        psutil.Process(process.pid).resume()
        place.log.append(0, [reserved("p3", 3)])
        await until(lambda: place.value("SELECT count(*) = 3 FROM purchases"), "the frozen one goes on", 30)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert {event.version for event in place.events()} == {3}
