"""The plan of a chaos run: repeatable by its seed, and leaving no fault out."""

import signal
from itertools import islice
from pathlib import Path

import pytest

from stampede_schemas.topics import partition_of
from tests.chaos import long_sale
from tests.chaos.builds import points
from tests.chaos.builds.rules import MARK
from tests.chaos.faults import FAULTS, KINDS
from tests.chaos.faults.processes import WRITER_CRASHES
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
    order = points.arm(tmp_path, ["inventory-0"], "decided", 3)
    assert passing.armed_at("decided")
    passing.passed("decided")
    points.disarm(order)
    for _ in range(10):
        passing.passed("decided")
    points.arm(tmp_path, ["inventory-0"], "decided", 0, signal.SIGCONT)
    passing.passed("produced")
    assert points.struck(tmp_path, "inventory-0") == ""
    passing.passed("decided")
    assert points.struck(tmp_path, "inventory-0") == "decided"
    passing.passed("decided")
    assert points.struck(tmp_path, "inventory-0") == ""


def test_of_several_that_are_armed_exactly_one_strikes(tmp_path: Path) -> None:
    """Whoever is first at the point; the others pass it for ever after, also if they have read the order."""
    names = ["order-writer-0", "order-writer-1", "order-writer-2"]
    writers = {name: points.Points({points.FOLDER: str(tmp_path), "STAMPEDE_INSTANCE": name}) for name in names}
    signals: list[int] = []
    usual = signal.signal(signal.SIGUSR1, lambda number, _frame: signals.append(number))
    try:
        points.arm(tmp_path, names, "before COMMIT", 1, signal.SIGUSR1)
        for name in ("order-writer-2", "order-writer-0", *(names * 3)):
            writers[name].passed("before COMMIT")
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert signals == [signal.SIGUSR1]
    assert [points.struck(tmp_path, name) for name in names] == ["before COMMIT", "", ""]


@pytest.mark.parametrize("seed", range(20))
def test_the_long_sale_kills_the_order_writer_at_every_point(seed: int) -> None:
    """Whatever the seed: each point once, after the time without Postgres, while buyers still arrive."""
    plan = long_sale.planned(seed, 10_000, 100.0, 30.0)
    away, *deaths = plan.strikes
    assert away.fault == long_sale.AWAY
    assert sorted(strike.fault for strike in deaths) == sorted(f"order-writer {point}" for point in WRITER_CRASHES)
    assert all(away.at_s + away.lasts_s < strike.at_s < plan.lasts_s for strike in deaths)
