"""`python -m tests.chaos.long_sale --seed N`: 10,000 units sold to people who do not pay, change their minds, or hang.

A fifth declines, a twentieth pays in a way that never answers, a twentieth takes it back; the order-writer dies at
every point that has a name, and for half a minute nobody reaches Postgres. At the end every unit must be sold, or
given back and sold again; every rule holds; and the money that the provider kept is the price of what was sold.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from random import Random

from tests.chaos.__main__ import Teller, arena, keep
from tests.chaos.faults import KINDS
from tests.chaos.faults.processes import WRITER_CRASHES
from tests.chaos.plan import Round, Stall, Strike, product
from tests.chaos.play import Buying, Played, play
from tests.chaos.results import FOLDER, close, sentences, table

TITLE = "A long sale, in which everything goes wrong"
STALLS = 6
DEAD_FOR_S = 4.0  # between two deaths of the order-writer: its successor is at work again
BUYERS_PER_UNIT = 1.6  # a third of them leaves empty-handed
AWAY = "order-writer-postgres refused"
# Holds run out while nobody reaches Postgres; whoever waits for what comes back waits for several of them.
BUYING = Buying(declined=0.2, unknown=0.05, cancelled=0.05, hold_ms=15_000, patience_s=150.0, round_s_max=600.0)


def planned(seed: int, units: int, arrivals_per_s: float, away_s: float) -> Round:
    """The sale: first Postgres is lost, then the order-writer dies at each of its points, in some order."""
    dice = Random(seed)
    points = [f"order-writer {point}" for point in WRITER_CRASHES]
    dice.shuffle(points)
    at_s = 5.0
    strikes = [Strike(AWAY, at_s, away_s, dice.randrange(2**32))]
    at_s += away_s + DEAD_FOR_S
    buyers = round(units * BUYERS_PER_UNIT / STALLS)
    lasts_s = buyers * STALLS / arrivals_per_s
    between_s = max(DEAD_FOR_S, (lasts_s - at_s) / (len(points) + 1))
    for point in points:
        strikes.append(Strike(point, at_s, 0.0, dice.randrange(2**32)))
        at_s += between_s
    stalls = tuple(
        Stall(product(dice, odd=False), units // STALLS, buyers, arrivals_per_s / STALLS, dice.randrange(2**32))
        for _ in range(STALLS)
    )
    assert KINDS.keys() >= {strike.fault for strike in strikes}
    return Round(0, stalls, tuple(strikes), max(lasts_s, at_s))


def unsold(played: Played) -> list[str]:
    """What is wrong with the end: units that nobody has, and deaths that did not happen."""
    units = sum(stall.units for stall in played.round.stalls)
    wrong = [] if played.confirmed == units else [f"{played.confirmed} of {units} units are sold"]
    hits = zip(played.round.strikes, played.hits, strict=False)
    return wrong + [f"{strike.fault}: it hit nothing" for strike, hit in hits if not hit]


def main() -> int:
    """Run the command line."""
    top = argparse.ArgumentParser(prog="python -m tests.chaos.long_sale", description=__doc__)
    top.add_argument("--units", type=int, default=10_000, help="of all products together (10,000)")
    top.add_argument("--arrivals", type=float, default=100.0, help="buyers a second, of all products (100)")
    top.add_argument("--away", type=float, default=30.0, help="seconds without Postgres (30)")
    top.add_argument("--seed", type=int, default=1)
    top.add_argument("--out", type=Path, default=FOLDER / "long_sale.md", help="the result is added to this file")
    asked = top.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tell = Teller()
    tell(f"seed {asked.seed}, {asked.units:,} units; starting the stack")
    with arena(tell) as fought:
        tell("the stack is up")
        played = asyncio.run(play(fought, planned(asked.seed, asked.units, asked.arrivals, asked.away), BUYING))
        wrong = [*played.wrong, *unsold(played)]
        if wrong:
            tell(f"evidence: {keep(fought, played.evidence, f'long-sale-{asked.seed}')}")
    said = [*sentences([played]), *(f"WRONG: {sentence}" for sentence in wrong)]
    said.insert(1, f"{played.ends}; {tell.minutes:.1f} minutes in all.")
    body = "\n".join([table([played]), "", *(f"- {sentence}" for sentence in said)])
    command = f"python -m tests.chaos.long_sale --units {asked.units} --arrivals {asked.arrivals:g} --seed {asked.seed}"
    return close(asked.out, TITLE, asked.seed, command, body, wrong=bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
