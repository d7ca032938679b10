"""When a view covers a moment: only an end of `requests` that was asked for after it, and is covered, says so."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from gateway.read_side.freshness import Freshness
from tests.support.builders.gateway import EndOfRequests

LONG, SHORT = 20.0, 0.02


class Rig:
    """A freshness of partition 0 with a clock of the test's and a log that the test makes longer."""

    def __init__(self, end: int | None = 0) -> None:
        self.log, self.now = EndOfRequests(end), 100.0
        self.lost: list[tuple[int, int, int]] = []
        self.freshness = Freshness(self.log.ends, lambda *told: self.lost.append(told), lambda: self.now)

    def wait(self, moment: float, within_s: float = LONG) -> "asyncio.Task[bool]":
        """Somebody whose arrival has to be covered."""
        return asyncio.create_task(self.freshness.fresh(0, moment, within_s))


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    """It asks as long as somebody waits."""
    task = asyncio.create_task(rig.freshness.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def turns(count: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_end_that_is_covered_is_fresh_at_once() -> None:
    """One question; the next one who came before it needs none."""
    async with running(Rig(7)) as rig:
        rig.freshness.applied(0, 6)
        assert await rig.wait(100.0)
        assert await rig.wait(99.0)
    assert rig.log.asked == 1


async def test_it_is_fresh_only_when_the_end_is_applied() -> None:
    """The decision of the last request that stood there is what counts."""
    async with running(Rig(7)) as rig:
        rig.freshness.applied(0, 4)
        waiting = rig.wait(100.0)
        await turns()
        assert not waiting.done()
        rig.freshness.applied(0, 5)
        await turns()
        assert not waiting.done()
        rig.freshness.applied(0, 6)
        assert await waiting


async def test_an_end_asked_for_before_the_arrival_proves_nothing() -> None:
    """What came in between is not covered by it: another question is asked."""
    async with running(Rig(7)) as rig:
        rig.freshness.applied(0, 6)
        assert await rig.wait(100.0)
        rig.log.end, rig.now = 8, 101.0
        asked, waiting = rig.log.asked, rig.wait(101.0)
        async with asyncio.timeout(LONG):
            while rig.log.asked == asked:  # noqa: ASYNC110 - the questions are counted, not told
                await asyncio.sleep(0.001)
        await turns()
        assert not waiting.done()
        rig.freshness.applied(0, 7)
        assert await waiting


async def test_a_silent_broker_is_waited_for_in_vain() -> None:
    """False after the time that was given."""
    async with running(Rig(None)) as rig:
        assert not await rig.wait(100.0, SHORT)


async def test_an_acknowledgement_here_is_an_end_too() -> None:
    """The record was produced after the arrival: what stood there then is in front of it."""
    async with running(Rig(None)) as rig:
        rig.freshness.applied(0, 3)
        early, late = rig.wait(100.0), rig.wait(100.6, SHORT)
        await turns()
        rig.freshness.acknowledged(0, 5, 100.5)
        rig.freshness.applied(0, 4)
        assert await early
        assert not await late


@pytest.mark.parametrize("known", ["acknowledged", "applied"])
async def test_an_end_below_what_stood_there_is_a_lost_tail_and_never_fresh(known: str) -> None:
    """It is told of, with both ends."""
    async with running(Rig(7)) as rig:
        if known == "acknowledged":
            rig.freshness.acknowledged(0, 8, 99.0)
            rig.freshness.applied(0, 6)
        else:
            rig.freshness.applied(0, 8)
        assert not await rig.wait(100.0, SHORT)
    assert rig.lost[0] == (0, 7, 9)


async def test_what_is_acknowledged_after_the_question_is_not_taken_for_lost() -> None:
    """The end was asked for before: it may be lower."""
    rig = Rig(7)
    question = asyncio.create_task(rig.freshness.ask([0]))
    await asyncio.sleep(0)
    rig.freshness.acknowledged(0, 8, 99.0)
    await question
    assert rig.lost == []


async def test_a_crowd_shares_the_questions() -> None:
    """Those who come within some milliseconds wait for the same answer."""
    async with running(Rig(1)) as rig:
        rig.freshness.applied(0, 0)
        async with asyncio.timeout(LONG):
            answers = await asyncio.gather(*(rig.wait(100.0) for _ in range(1_000)))
    assert all(answers)
    assert rig.log.asked <= 2


async def test_many_ends_that_are_not_covered_stay_few_in_memory() -> None:
    """Frozen workers, and a log that grows: in the end the newest end is good for everybody."""
    rig = Rig(0)
    waiting = rig.wait(100.0)
    await turns()
    for end in range(1, 1_000):
        rig.log.end, rig.now = end, 100.0 + end
        await rig.freshness.ask([0])
    rig.freshness.applied(0, 998)
    assert await waiting
    assert await rig.freshness.fresh(0, 1_099.0, SHORT)


async def test_a_look_is_not_repeated_for_each_who_wants_one() -> None:
    """Whoever asks about an overdue purchase while workers are frozen makes no further question."""
    rig = Rig(0)
    for _ in range(100):
        await rig.freshness.check(0)
    assert rig.log.asked == 1
    rig.now += 1.0
    await rig.freshness.check(0)
    assert rig.log.asked == 2
