"""Half a minute of chaos at the door: tight limits, stock at its edge, two gateways and a Redis that die and forget."""

from collections.abc import Iterator
from random import Random

import pytest

from tests.chaos.__main__ import arena
from tests.chaos.arena import Arena
from tests.chaos.door.__main__ import ENVIRONMENT, verdict
from tests.chaos.door.plan import draw
from tests.chaos.door.play import play
from tests.chaos.faults import KINDS_AT_THE_DOOR

SEED = 5
# What is judged while Redis is believed comes first: afterwards it has to be believed again.
SHORT = {
    "gateway answered": (0.0, 0.0),
    "gateway-redis stalled": (3.0, 3.0),
    "gateway killed": (0.0, 0.0),
    "redis flushed": (0.0, 0.0),
}


@pytest.fixture
def fought() -> Iterator[Arena]:
    """A stack of test builds under tight limits."""
    with arena(print, ENVIRONMENT, each=1) as running:
        yield running


async def test_the_door_holds_whatever_forgets_or_dies(fought: Arena) -> None:
    """No rule is broken, and enough happened that each of them could have been."""
    kinds = {name: KINDS_AT_THE_DOOR[name]._replace(lasts_s=lasts_s) for name, lasts_s in SHORT.items()}
    planned = draw(Random(SEED), 0, list(SHORT), kinds)
    wrong, _ = verdict([await play(fought, planned)])
    assert wrong == []
