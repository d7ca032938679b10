"""The plan of a chaos run: repeatable by its seed, and leaving no fault out."""

import signal
from itertools import islice
from pathlib import Path

import pytest

from stampede_schemas.topics import partition_of
from tests.chaos.builds import points
from tests.chaos.builds.rules import MARK
from tests.chaos.faults import FAULTS, KINDS
from tests.chaos.plan import LEAD_S, ODD_PARTITION, TAIL_S, Round, rounds


def drawn(seed: int, count: int = 40) -> list[Round]:
    """The first rounds of a seed."""
    return list(islice(rounds(seed, KINDS, 90.0), count))


def first_pass(seed: int) -> list[Round]:
    """The rounds until every fault has struck."""
    found: list[Round] = []
    for planned in rounds(seed, KINDS, 90.0):
        if {strike.fault for one in found for strike in one.strikes} == set(KINDS):
            return found
        found.append(planned)
    raise AssertionError


def test_the_same_seed_gives_the_same_plan() -> None:
    """Instants, victims' seeds, products and arrivals: everything; and another seed gives another plan."""
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_strikes_before_any_strikes_again_in_another_round(seed: int) -> None:
    """The first pass holds each fault in exactly one round, and is short enough for ten minutes."""
    found = first_pass(seed)
    names = [name for one in found for name in {strike.fault for strike in one.strikes}]
    assert sorted(names) == sorted(FAULTS)
    assert sum(one.lasts_s for one in found) < 600


@pytest.mark.parametrize("seed", range(20))
def test_the_sale_is_under_way_before_the_first_fault_and_goes_on_after_the_last(seed: int) -> None:
    """Buyers arrive from before the first strike until some seconds after the last has ended."""
    for planned in drawn(seed):
        assert min(strike.at_s for strike in planned.strikes) >= LEAD_S
        assert planned.lasts_s >= max(strike.at_s + strike.lasts_s for strike in planned.strikes) + TAIL_S
        for stall in planned.stalls:
            assert stall.buyers == pytest.approx(stall.arrivals_per_s * planned.lasts_s, abs=1)
            assert 0 < stall.units < stall.buyers


@pytest.mark.parametrize("seed", range(20))
def test_products_of_two_versions_have_a_partition_of_their_own(seed: int) -> None:
    """They are sold only where two versions fight, and nothing else is sold there: the model knows one version."""
    for planned in drawn(seed):
        for stall in planned.stalls:
            assert stall.product_id.startswith(MARK) == (partition_of(stall.product_id) == ODD_PARTITION)
        wanted = any(KINDS[strike.fault].odd for strike in planned.strikes)
        assert any(stall.product_id.startswith(MARK) for stall in planned.stalls) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_mixed_rounds_strike_different_targets(seed: int) -> None:
    """Strikes on one target would only wait for each other."""
    for planned in drawn(seed)[len(first_pass(seed)) :]:
        targets = [KINDS[strike.fault].target for strike in planned.strikes]
        assert len(set(targets)) == len(targets) > 1


def test_an_order_to_die_is_obeyed_once_and_can_be_taken_back(tmp_path: Path) -> None:
    """A process without an order, or whose order was taken back, passes every point."""
    here = {points.FOLDER: str(tmp_path), "STAMPEDE_INSTANCE": "inventory-0"}
    passing = points.Points(here)
    passing.passed("decided")
    points.arm(tmp_path, "inventory-0", "decided", 3)
    assert passing.armed_at("decided")
    passing.passed("decided")
    points.disarm(tmp_path, "inventory-0")
    for _ in range(10):
        passing.passed("decided")
    points.arm(tmp_path, "inventory-0", "decided", 0, signal.SIGCONT)
    passing.passed("produced")
    assert points.struck(tmp_path, "inventory-0") == ""
    passing.passed("decided")
    assert points.struck(tmp_path, "inventory-0") == "decided"
    passing.passed("decided")
    assert points.struck(tmp_path, "inventory-0") == ""
