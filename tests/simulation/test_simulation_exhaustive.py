"""Small worlds walked through whole: no interleaving breaks the protocol, and each weaker one is refuted."""

import pytest

from tests.simulation.exhaustive import WORLDS, SmallWorld, Walk
from tests.simulation.mutants import MUTANTS
from tests.simulation.reference import Violation
from tests.simulation.world import SHIPPED

SMALL = WORLDS[:2]
REFUTED = (
    "the first copy of a source offset counts",
    "a record counts where its writer expected it",
    "one load id for all writers",
    "a jump counts in the loads",
    "no check of the landed offset",
    "follows its records instead of loading",
    "an unknown fate is success",
    "acknowledged before the delivery report",
)


@pytest.mark.parametrize("different_rules", [False, True], ids=["equal rules", "different rules"])
@pytest.mark.parametrize("world", SMALL, ids=lambda world: world.name)
def test_no_interleaving_breaks_the_protocol(world: SmallWorld, different_rules: bool) -> None:
    """Two workers with two batches in flight, reloads, and records that are lost on their way."""
    assert Walk(world, SHIPPED, different_rules).run() > 1_000


@pytest.mark.parametrize("name", REFUTED)
def test_a_weaker_protocol_is_refuted(name: str) -> None:
    """With two rule sets there is a way to two histories, or to an acknowledgement without an answer."""
    with pytest.raises(Violation, match=r"S[134]: .* after: load"):
        Walk(SMALL[1], MUTANTS[name], different_rules=True).run()


@pytest.mark.parametrize("name", REFUTED[:2])
def test_equal_rules_hide_a_weaker_protocol(name: str) -> None:
    """Which copy counts does not matter while all copies say the same: a test with one rule set is blind."""
    assert Walk(SMALL[1], MUTANTS[name], different_rules=False).run() > 1_000
