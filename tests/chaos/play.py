"""Plays one round: the sale, the strikes at their instants, the healing, the check."""

import asyncio
import time
from collections import Counter
from random import Random
from typing import NamedTuple

from devstack.failure import StackError
from devstack.load_generator import LoadGenerator, Sale
from replay.evidence import Evidence
from replay.failure import CannotCheck
from replay.journal import Journal
from tests.chaos.arena import Arena
from tests.chaos.faults import FAULTS
from tests.chaos.plan import Round, Stall, Strike
from tests.chaos.recovery import Recovery, recoveries
from tests.chaos.verdict import Verdict, check

TICK_S = 5.0


class Buying(NamedTuple):
    """How the buyers of a round behave: shares 0..1 of all of them, and how long anything may take."""

    declined: float = 0.15
    unknown: float = 0.0
    cancelled: float = 0.05
    duplicates: float = 0.1
    hold_ms: int = 60_000
    patience_s: float = 30.0  # after the last arrival; then a buyer who waits for stock gives up
    round_s_max: float = 300.0


USUAL = Buying()


class Played(NamedTuple):
    """What came of a round. `hits` tells, strike by strike, whether it found what it wanted to hit."""

    round: Round
    hits: list[bool]
    wrong: list[str]
    accepted: int
    confirmed: int
    ends: str
    void: int
    drained_s: float
    recovered: list[Recovery]
    evidence: Evidence | None


async def play(arena: Arena, planned: Round, buying: Buying = USUAL) -> Played:
    """One round, at most as long as it may be; whatever is wrong is in the result."""
    began, kills_before = time.monotonic(), len(arena.kills)
    hits: list[bool] = []
    journals: list[Journal] = []
    try:
        async with asyncio.timeout(buying.round_s_max):
            journals, hits = await _sell(arena, planned, buying)
            verdict = await check(arena.stack, journals)
    except (StackError, CannotCheck, AssertionError, TimeoutError, OSError) as error:
        arena.tell(f"the round broke off after {time.monotonic() - began:.0f} s")
        arena.leave()
        wrong = [f"the round broke off: {str(error) or type(error).__name__}"]
        return Played(planned, hits, wrong, *_counts(journals), 0, 0.0, [], None)
    return _played(planned, hits, journals, verdict, arena, kills_before)


def _played(
    planned: Round,
    hits: list[bool],
    journals: list[Journal],
    verdict: Verdict,
    arena: Arena,
    kills_before: int,
) -> Played:
    measured = all(FAULTS[strike.fault].alone for strike in planned.strikes)
    kills = arena.kills[kills_before:] if measured else []
    recovered = list(recoveries(verdict.evidence, kills))
    void, arena.void = verdict.void - arena.void, verdict.void
    counts = _counts(journals)
    return Played(planned, hits, verdict.wrong, *counts, void, verdict.drained_s, recovered, verdict.evidence)


def _counts(journals: list[Journal]) -> tuple[int, int, str]:
    """How many were logged, how many confirmed, and how each purchase ended, as a sentence."""
    logged = [attempt for journal in journals for attempt in journal.logged]
    ends = Counter(f"{attempt.outcome} {attempt.reason}".strip() for attempt in logged)
    told = ", ".join(f"{count:,} {end}" for end, count in sorted(ends.items()))
    return len(logged), sum(attempt.outcome == "confirmed" for attempt in logged), told


async def _sell(arena: Arena, planned: Round, buying: Buying) -> tuple[list[Journal], list[bool]]:
    loads = [LoadGenerator(arena.stack.endpoints, _sale(stall, planned.lasts_s, buying)) for stall in planned.stalls]
    locks = {fault.target: asyncio.Lock() for fault in FAULTS.values()}
    watching = asyncio.create_task(_watch(arena, loads))
    try:
        async with asyncio.TaskGroup() as group:
            selling = [group.create_task(load.run()) for load in loads]
            striking = [group.create_task(_strike(arena, strike, locks)) for strike in planned.strikes]
            hits = [await struck for struck in striking]
            await asyncio.to_thread(arena.heal)
    except BaseExceptionGroup as group_of:
        raise group_of.exceptions[0] from None
    finally:
        watching.cancel()
    return [sold.result() for sold in selling], hits


def _sale(stall: Stall, lasts_s: float, buying: Buying) -> Sale:
    return Sale(
        units=stall.units,
        buyers=stall.buyers,
        declined_share=buying.declined,
        unknown_share=buying.unknown,
        cancelled_share=buying.cancelled,
        duplicates_share=buying.duplicates,
        arrivals_per_s=stall.arrivals_per_s,
        hold_ms=buying.hold_ms,
        patience_s=lasts_s + buying.patience_s,
        seed=stall.seed,
        product_id=stall.product_id,
    )


async def _strike(arena: Arena, strike: Strike, locks: dict[str, asyncio.Lock]) -> bool:
    fault = FAULTS[strike.fault]
    await asyncio.sleep(strike.at_s)
    async with locks[fault.target]:
        return await asyncio.to_thread(fault.strike, arena, Random(strike.seed), strike.lasts_s)


async def _watch(arena: Arena, loads: list[LoadGenerator]) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        journals = [load.journal for load in loads]
        asked = sum(len(journal.attempts) for journal in journals)
        confirmed = sum(journal.count("confirmed") for journal in journals)
        arena.tell(f"{asked} asked, {confirmed} of {sum(load.sale.units for load in loads)} sold")
