"""What a fault is. A strike returns whether it found what it wanted to hit: one that hit nothing tested nothing.

Strikes block, and each begins and ends by itself. `seconds` is how long a lasting one lasts; `dice` makes its choices.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tests.chaos.arena import Arena

Strikes = Callable[[Arena, Random, float], bool]


class Fault(NamedTuple):
    """`target` is held by one strike at a time; `zombie`: it must leave void records, or it tested nothing."""

    sentence: str
    strike: Strikes
    target: str
    lasts_s: tuple[float, float] = (0.0, 0.0)
    zombie: bool = False
    odd: bool = False
    alone: bool = False
