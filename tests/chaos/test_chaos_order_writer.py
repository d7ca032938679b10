"""An order-writer alone, killed at each of its points, and frozen with messages in hand: nothing is lost or doubled."""

import asyncio
import signal
from pathlib import Path

from tests.chaos.builds.points import arm
from tests.support.builders.orders import Installation, listed, until
from tests.support.faults.mortal import everything, freeze_and_succeed, mortal, sell, settled, struck_at

POINTS = (
    "before COMMIT",
    "after COMMIT, before the offset",
    "before the outbox is sent",
    "after the outbox is sent",
)


async def test_a_writer_killed_at_each_point_is_continued(place: Installation, tmp_path: Path) -> None:
    """kill -9 before and after COMMIT, before and after sending: the next start goes on, nothing is lost or doubled."""
    place.log.append(2, [listed(stock=10**6)])
    total = 0
    for point in POINTS:
        total += sell(place, point.replace(" ", "-"), first=total + 1)
        arm(tmp_path, ["mortal"], point, 0)
        process = await asyncio.to_thread(mortal, place, tmp_path)
        try:
            await until(lambda: struck_at(tmp_path), f"struck {point}")
            assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
        finally:
            process.kill()
    async with place.writer("mortal", payment="none") as task:
        await until(lambda: settled(place, total), "the rest", task=task)
    await everything(place, total)


async def test_a_frozen_relay_has_a_successor_and_thaws_harmlessly(place: Installation, tmp_path: Path) -> None:
    """It holds the lease and rows in hand: the lease is taken from it within seconds; thawed, it sends them again."""
    await freeze_and_succeed(place, tmp_path, "before the outbox is sent")
