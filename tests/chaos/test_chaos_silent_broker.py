"""The broker is frozen, not dead. `python -m tests.chaos.silent_broker 60 180` does the same for longer."""

from collections.abc import Iterator

import pytest

from tests.chaos.silent_broker import freeze
from tests.support.processes.stack import ROOT, LocalStack, stack

LONGER_THAN_SESSIONS_S = 25.0


@pytest.fixture(scope="module")
def running() -> Iterator[LocalStack]:
    """A stack whose broker is frozen."""
    with stack(inventory=2) as made:
        yield made


@pytest.mark.parametrize("seconds", [5.0, LONGER_THAN_SESSIONS_S])
def test_nothing_ends_of_a_silent_broker_and_nothing_untrue_is_said(running: LocalStack, seconds: float) -> None:
    """No process ends, even when its session does, and each partition decides within 10 s of the broker's return."""
    found = freeze(running, seconds)
    assert found.well, found


def test_a_worker_that_takes_silence_for_wrong_topics_is_noticed() -> None:
    """The planted bug: it ends, and says so."""
    build = {"inventory": "tests.chaos.builds.hasty_inventory"}
    with stack({"PYTHONPATH": str(ROOT)}, inventory=2, modules=build) as broken:
        found = freeze(broken, LONGER_THAN_SESSIONS_S)
    assert set(found.ended) == {"inventory-0", "inventory-1"}
    assert any("did not say what its topics are" in line for line in found.untrue)
