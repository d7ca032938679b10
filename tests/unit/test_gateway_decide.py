"""The decider of a purchase, row by row: each combination of what is known, limits, gate and view has one answer."""

from itertools import product
from typing import get_args

import pytest

from gateway.admission.decide import Gate, Known, Limits, View, decide, gate_of
from gateway.read_side.projection import OPENING_GRACE_MS
from tests.support.builders.gateway import LAMP, folded, listed, reserved

ANY: set[str] = set()  # all of them
CLOSED = {"sold out", "not open", "unknown product"}
NO_OUTCOME = {"nothing", "unsettled", "unproven"}
MAY_STAND_IN_THE_LOG = {"unsettled", "unproven"}
EVERY = list(product(get_args(Known), get_args(Limits), get_args(Gate), get_args(View)))

TABLE = (
    # known                        limits   gate          view                  step
    ({"same body"}, ANY, ANY, ANY, "replay"),
    ({"accepted"}, ANY, ANY, ANY, "replay"),
    ({"other body"}, ANY, ANY, ANY, "key reused"),
    ({"on its way"}, ANY, ANY, ANY, "join"),
    ({"other undecided"}, ANY, ANY, ANY, "await decision"),
    ({"remembered"}, ANY, ANY, ANY, "ask row"),
    (NO_OUTCOME, {"unasked"}, ANY, ANY, "ask limits"),
    (NO_OUTCOME, {"refused"}, ANY, ANY, "limited"),
    (MAY_STAND_IN_THE_LOG, {"allowed"}, ANY, ANY, "append"),
    ({"nothing"}, {"allowed"}, {"open"}, ANY, "append"),
    ({"nothing"}, {"allowed"}, CLOSED, {"unasked"}, "ask end"),
    ({"nothing"}, {"allowed"}, CLOSED, {"fresh"}, "refuse"),
    ({"nothing"}, {"allowed"}, CLOSED, {"stale"}, "busy"),
    ({"nothing"}, {"allowed"}, {"not open"}, {"spare"}, "busy"),
    ({"nothing"}, {"allowed"}, {"sold out", "unknown product"}, {"spare"}, "append"),
)


@pytest.mark.parametrize("case", EVERY, ids=", ".join)
def test_each_combination_has_exactly_one_row(case: tuple[Known, Limits, Gate, View]) -> None:
    """And the decider gives that row's step."""
    steps = [step for *sets, step in TABLE if all(not one or have in one for one, have in zip(sets, case, strict=True))]
    assert len(steps) == 1
    assert decide(*case) == steps[0]


def test_the_gate_refuses_only_what_is_sure() -> None:
    """Sold out at zero, not open well before the opening; unknown time or a last unit goes to the log."""
    gone = folded([listed(1, opens_at_ms=10_000)]).products[LAMP]
    assert gate_of(None, 0) == "unknown product"
    assert gate_of(gone, None) == "open"
    assert gate_of(gone, 10_000 - OPENING_GRACE_MS) == "open"
    assert gate_of(gone, 10_000 - OPENING_GRACE_MS - 1) == "not open"
    gone.closes_at_ms = 20_000
    assert gate_of(gone, 19_999) == "open"
    assert gate_of(gone, 20_000) == "not open"
    gone.available = 0
    assert gate_of(gone, 15_000) == "sold out"
    gone.status = "paused"
    assert gate_of(gone, 15_000) == "not open"


def test_the_gate_opens_again_with_the_last_decision() -> None:
    """It follows the projection."""
    projection = folded([listed(1)], [reserved(left=0)])
    assert gate_of(projection.products[LAMP], None) == "sold out"
