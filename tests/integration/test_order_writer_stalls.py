"""A partition that the client of Kafka leaves unread ends the process; one that cannot be read on now does not.

Played with a few seconds of patience, so that an outage is far longer.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support.builders.orders import Installation, listed, reserved, until
from tests.support.faults.stalling import LOOKS_MAX, PARTITION
from tests.support.processes.stack import LocalStack

pytestmark = pytest.mark.own_servers  # the broker is frozen

OUTAGE_S = 4.0 * LOOKS_MAX


@contextmanager
def impatient(place: Installation, said: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A writer as a process."""
    env |= {
        "STAMPEDE_KAFKA": place.kafka,
        "STAMPEDE_POSTGRES": place.postgres,
        "STAMPEDE_PAYMENT": "none",
        "STAMPEDE_SESSION_TIMEOUT_S": "6",
    }
    command = [sys.executable, "-m", "tests.support.faults.stalling"]
    with said.open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def confirmed(place: Installation, count: int) -> bool:
    """Whether so many purchases are."""
    return await place.value("SELECT count(*) FROM purchases WHERE status = 'confirmed'") == count


async def test_an_unread_partition_ends_the_process(place: Installation, tmp_path: Path) -> None:
    """Also beside a busy one. It says which, and where it stands."""
    place.log.append(2, [listed()], [reserved("p1", 1)])
    number = 0
    with impatient(place, tmp_path / "said", **{PARTITION: "2"}) as process:
        while process.poll() is None:  # a restarted writer would read on
            place.log.append(
                3, [listed("hat", 10**6)] if not number else [reserved(f"h{number}", number, product_id="hat")]
            )
            number += 1
            assert number < 2_000, "it goes on"
            await asyncio.sleep(0.02)
        assert process.returncode == 1
    assert await place.value("SELECT count(*) > 0 AND bool_and(product_id = 'hat') FROM purchases")
    sentence = "order-writer: stampede.decisions/2 ends at 2, but nothing came from 0 on"
    assert (tmp_path / "said").read_text().splitlines()[-1].startswith(sentence)


async def test_outages_and_a_stopped_partition_are_no_stall(
    place: Installation, servers: LocalStack, tmp_path: Path
) -> None:
    """A frozen broker, a table that is locked, a partition that is stopped: each for longer than its patience."""
    place.log.append(2, [listed()], [reserved("p1", 1)])
    place.log.append(4, [listed("hat")], [reserved("h1", 1, product_id="hat")])
    with impatient(place, tmp_path / "said") as process:
        await until(lambda: confirmed(place, 2), "running", 30)
        servers.kill("kafka", signal.SIGSTOP)
        await asyncio.sleep(OUTAGE_S)  # for how long it is frozen, and so below
        servers.kill("kafka", signal.SIGCONT)
        place.log.append(2, [reserved("p2", 2)])
        await until(lambda: confirmed(place, 3), "read on after the broker's silence", 30)

        other = await asyncpg.connect(place.postgres)
        async with other.transaction():
            await other.execute("LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE")
            for number in (3, 4):
                place.log.append(2, [reserved(f"p{number}", number)])
                await asyncio.sleep(OUTAGE_S / 2)
        await other.close()
        await until(lambda: confirmed(place, 5), "read on after the lock", 30)

        place.log.append(4, [reserved("h2", 1, product_id="hat")], [reserved("h3", 2, product_id="hat")])
        stopped = "SELECT stopped IS NOT NULL FROM progress WHERE partition = 4"
        await until(lambda: place.value(stopped), "a broken fold")
        await asyncio.sleep(OUTAGE_S)
        place.log.append(2, [reserved("p5", 5)])
        await until(lambda: confirmed(place, 6), "the other partitions go on", 30)
        assert process.poll() is None
