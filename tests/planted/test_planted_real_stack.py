"""Real services with a bug each, and the checker that has to name it. `python -m tests.planted` plays all of them."""

from collections.abc import Iterator

import pytest

from tests.planted.__main__ import line_of, shown
from tests.planted.bugs import BUGS, CONTROL, Planted
from tests.planted.trial import Stage, stage

HERE = (
    "the last unit is sold twice",
    "the first copy counts, after a zombie",
    "poison is passed over without a decision",
    "another price in the row",
    "one key gives two purchases",
)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Stage]:
    """One stack for all of them."""
    with stage() as ready:
        yield ready


@pytest.mark.parametrize("bug", [CONTROL, *(bug for bug in BUGS if bug.name in HERE)], ids=lambda bug: bug.name)
def test_the_responsible_invariant_names_the_planted_bug(prepared: Stage, bug: Planted) -> None:
    """A small sale on the broken build is caught by the rule that is responsible; the shipped build breaks none."""
    caught = prepared.play(bug)
    shown(line_of(caught))
    assert caught.named, f"{bug.rule or 'no rule'} was expected, violated are {caught.violated}"
