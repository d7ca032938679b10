"""What strikes a round at the edge, drawn from one seed before anything runs. Pure."""

from collections.abc import Iterator, Mapping
from random import Random
from typing import NamedTuple

from stampede_schemas.topics import partition_of
from tests.chaos.plan import Kind, Strike, product

LEAD_S, TAIL_S = 6.0, 3.0  # without a fault: the edge is as it should be, and then is itself again
GAP_S = (0.5, 4.0)
PER_ROUND = 6
TOGETHER_SHARE = 0.35  # of the strikes begin while the one before is under way
PRODUCTS = 2


class EdgeRound(NamedTuple):
    """`strikes` are seconds after the sale began; `seed` is that of the buyers' choices.

    `gone` never has a unit, and shares a partition with the first of the products: what is logged for these keeps the
    view of it from being fresh while workers are frozen.
    """

    number: int
    products: tuple[str, ...]
    gone: str
    strikes: tuple[Strike, ...]
    lasts_s: float
    seed: int


def rounds(seed: int, kinds: Mapping[str, Kind]) -> Iterator[EdgeRound]:
    """Rounds without end. Each fault once before any of them twice."""
    dice = Random(seed)
    left: list[str] = []
    number = 0
    while True:
        while len(left) < PER_ROUND:
            left += dice.sample(sorted(kinds), len(kinds))
        names, left = left[:PER_ROUND], left[PER_ROUND:]
        yield draw(dice, number, names, kinds)
        number += 1


def draw(dice: Random, number: int, names: list[str], kinds: Mapping[str, Kind]) -> EdgeRound:
    """One round of these faults, in this order."""
    at_s, ends_s, strikes = LEAD_S, LEAD_S, list[Strike]()
    for name in names:
        strike = Strike(name, at_s, dice.uniform(*kinds[name].lasts_s), dice.randrange(2**32))
        strikes.append(strike)
        ends_s = max(ends_s, strike.at_s + strike.lasts_s)
        together = strike.lasts_s > 0 and dice.random() < TOGETHER_SHARE
        at_s = at_s + strike.lasts_s / 2 if together else ends_s + dice.uniform(*GAP_S)
    products = tuple(product(dice, odd=False) for _ in range(PRODUCTS))
    gone = product(dice, odd=False)
    while partition_of(gone) != partition_of(products[0]):
        gone = product(dice, odd=False)
    return EdgeRound(number, products, gone, tuple(strikes), ends_s + TAIL_S, dice.randrange(2**32))
