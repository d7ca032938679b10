"""Half a minute of chaos at the edge: tight limits, stock at its edge, two gateways and a Redis that die and forget.

And some hundred connections that are cut.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.chaos.__main__ import arena
from tests.chaos.arena import Arena
from tests.chaos.edge.__main__ import ENVIRONMENT, verdict
from tests.chaos.edge.plan import draw
from tests.chaos.edge.play import play
from tests.chaos.edge.retries import tried, two_gateways
from tests.chaos.faults import KINDS_AT_THE_EDGE
from tests.support.processes.stack import LocalStack

SEED = 5
SHORT = {
    "gateway answered": (0.0, 0.0),
    "gateway-redis stalled": (3.0, 3.0),
    "gateway acknowledged": (0.0, 0.0),
    "redis flushed": (0.0, 0.0),
    "workers frozen": (3.0, 3.0),
}
TRIES = 300


@pytest.fixture
def fought() -> Iterator[Arena]:
    """A stack of test builds under tight limits."""
    with arena(print, ENVIRONMENT, each=1) as running:
        yield running


@pytest.fixture
def two() -> Iterator[tuple[LocalStack, Path]]:
    """A stack with two gateways, without limits that anybody would feel."""
    with two_gateways() as running:
        yield running


async def test_the_edge_holds_whatever_forgets_or_dies(fought: Arena) -> None:
    """No rule is broken, and enough happened that each of them could have been."""
    kinds = {name: KINDS_AT_THE_EDGE[name]._replace(lasts_s=lasts_s) for name, lasts_s in SHORT.items()}
    planned = draw(Random(SEED), 0, list(SHORT), kinds)
    wrong, _ = verdict([await play(fought, planned)])
    assert wrong == []


async def test_who_was_cut_off_and_asks_elsewhere_is_not_turned_away(two: tuple[LocalStack, Path]) -> None:
    """Not where the first send stands in the log; of those, enough came back when nothing was left."""
    found = await tried(*two, TRIES, SEED)
    assert found.wrong == []
    assert found.landed["before"] >= TRIES / 20
    assert found.closed >= TRIES / 100
