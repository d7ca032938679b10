"""An order-writer as a process that dies or freezes at named points, a sale for it, and what must be true after it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from stampede_schemas.decisions import AnyDecision
from tests.chaos.builds.points import FOLDER, GROUP, arm, struck
from tests.support.builders.orders import Installation, listed, reserved, until


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
    """Each order confirmed at version 3 and told; told again only as what it was."""
    assert await place.value("SELECT count(*) FROM purchases WHERE status = 'confirmed' AND version = 3") == total
    events = await asyncio.to_thread(place.events)
    assert {event.version for event in events} == {3}
    assert len({event.purchase_id for event in events}) == total


async def freeze_and_succeed(place: Installation, folder: Path, point: str) -> None:
    """Freeze a writer at the point, let a successor do its work, thaw it, and let it work on alone."""
    place.log.append(2, [listed(stock=10**6)])
    total = sell(place, "first")
    arm(folder, ["mortal"], point, 0, signal.SIGSTOP)
    process = await asyncio.to_thread(mortal, place, folder)
    try:
        await until(lambda: struck_at(folder), "frozen")
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
