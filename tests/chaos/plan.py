"""What will happen, drawn from one seed before anything runs: rounds of a sale each, and the faults that strike it.

Pure. The same seed gives the same plan; only what the machine makes of it differs.
"""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from stampede_schemas.topics import PARTITIONS, partition_of
from tests.chaos.builds.rules import MARK

LEAD_S = 2.5  # the sale is under way
GAP_S = (3.0, 5.0)  # between two short faults of a round
ALONE_GAP_S = 4.0  # and so much more where recovery is measured
ALONE_TIMES = 3
TAIL_S = 4.0  # the sale goes on after the last fault has ended
PRODUCTS = 3
SHORT_PER_ROUND = 3
LONG_PER_ROUND = 2
MIXED_PER_ROUND = 3
ODD_PARTITION = PARTITIONS - 1  # products that two rule versions decide differently live here, and nothing else
STOCK_SHARE = 0.85  # of the buyers who come can be served: sold out only near the end


class Kind(NamedTuple):
    """What a plan must know of a fault: whom it hits, how long it lasts, whether its sale needs two versions' product.

    `alone`: it is struck several times in a round of its own, because what follows is measured.
    """

    target: str
    lasts_s: tuple[float, float]
    odd: bool = False
    alone: bool = False


class Strike(NamedTuple):
    """A fault at an instant of a round (seconds after the sale began); its own choices come from its own seed."""

    fault: str
    at_s: float
    lasts_s: float
    seed: int


class Stall(NamedTuple):
    """One product of a round's sale."""

    product_id: str
    units: int
    buyers: int
    arrivals_per_s: float
    seed: int


class Round(NamedTuple):
    """A sale of several products and what strikes it."""

    number: int
    stalls: tuple[Stall, ...]
    strikes: tuple[Strike, ...]
    lasts_s: float


def rounds(seed: int, kinds: Mapping[str, Kind], arrivals_per_s: float) -> Iterator[Round]:
    """Rounds without end: first every fault once, the short ones in threes, lasting ones in twos; then mixtures."""
    dice = Random(seed)
    number = 0
    for names in _each_once(dice, kinds):
        lasting = len(names) == LONG_PER_ROUND and all(kinds[name].lasts_s[1] > 0 for name in names)
        yield draw(dice, number, names, kinds, arrivals_per_s, overlap=lasting)
        number += 1
    while True:
        yield draw(dice, number, _mixture(dice, kinds), kinds, arrivals_per_s, overlap=True)
        number += 1


def _each_once(dice: Random, kinds: Mapping[str, Kind]) -> list[list[str]]:
    names = sorted(kinds)
    dice.shuffle(names)
    alone = [name for name in names if kinds[name].alone]
    short = [name for name in names if kinds[name].lasts_s[1] == 0 and name not in alone]
    groups = [short[at : at + SHORT_PER_ROUND] for at in range(0, len(short), SHORT_PER_ROUND)]
    groups += [[name] * ALONE_TIMES for name in alone]
    groups += _in_twos([name for name in names if name not in short and name not in alone], kinds)
    dice.shuffle(groups)
    return groups


def _in_twos(names: list[str], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Lasting faults at once, two by two: of different targets, and of about the same length."""
    left = sorted(names, key=lambda name: kinds[name].lasts_s[1])
    groups = []
    while left:
        one = left.pop()
        other = next((name for name in reversed(left) if kinds[name].target != kinds[one].target), None)
        if other is not None:
            left.remove(other)
        groups.append([one] if other is None else [one, other])
    return groups


def _mixture(dice: Random, kinds: Mapping[str, Kind]) -> list[str]:
    names: dict[str, str] = {}
    for name in dice.sample(sorted(kinds), len(kinds)):
        names.setdefault(kinds[name].target, name)
    return list(names.values())[:MIXED_PER_ROUND]


def draw(
    dice: Random,
    number: int,
    names: Sequence[str],
    kinds: Mapping[str, Kind],
    arrivals_per_s: float,
    *,
    overlap: bool = False,
) -> Round:
    """One round of these faults: one after the other, or, with `overlap`, begun within the same few seconds."""
    at_s, ends_s, strikes = LEAD_S, LEAD_S, list[Strike]()
    for name in names:
        strike = Strike(name, at_s, dice.uniform(*kinds[name].lasts_s), dice.randrange(2**32))
        strikes.append(strike)
        ends_s = max(ends_s, strike.at_s + strike.lasts_s)
        at_s = (at_s if overlap else ends_s) + dice.uniform(*GAP_S) + (ALONE_GAP_S if kinds[name].alone else 0.0)
    lasts_s = ends_s + TAIL_S + (ALONE_GAP_S if kinds[names[-1]].alone else 0.0)
    products = [product(dice, odd=False) for _ in range(PRODUCTS)]
    if any(kinds[name].odd for name in names):
        products[0] = product(dice, odd=True)
    rate = arrivals_per_s / PRODUCTS
    buyers = round(rate * lasts_s)
    stalls = (Stall(name, round(buyers * STOCK_SHARE), buyers, rate, dice.randrange(2**32)) for name in products)
    return Round(number, tuple(stalls), tuple(strikes), lasts_s)


def product(dice: Random, *, odd: bool) -> str:
    """The id of a new product, of two rule versions or of one."""
    while True:
        product_id = f"{MARK if odd else ''}tea-{dice.randrange(16**8):08x}"
        if (partition_of(product_id) == ODD_PARTITION) == odd:
            return product_id
