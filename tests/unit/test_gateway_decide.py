"""The decider of a purchase, row by row: each combination of what is known, limits, gate and view has one answer."""

from enum import Enum
from itertools import product

import pytest

from gateway.decide import Gate, Known, Limits, Step, View, decide, gate_of
from gateway.projection import OPENING_GRACE_MS
from tests.support.gateway import folded, listed, reserved

ANY: frozenset[Enum] = frozenset()  # every member
CLOSED = {Gate.SOLD_OUT, Gate.NOT_OPEN, Gate.UNKNOWN_PRODUCT}
NO_OUTCOME = {Known.NOTHING, Known.UNSETTLED, Known.UNPROVEN}
MAY_STAND_IN_THE_LOG = {Known.UNSETTLED, Known.UNPROVEN}
UNASKED, ALLOWED, REFUSED = {Limits.UNASKED}, {Limits.ALLOWED}, {Limits.REFUSED}

TABLE = (
    # known                        limits   gate          view                  step
    ({Known.SAME_BODY}, ANY, ANY, ANY, Step.REPLAY),
    ({Known.ACCEPTED}, ANY, ANY, ANY, Step.REPLAY),
    ({Known.OTHER_BODY}, ANY, ANY, ANY, Step.KEY_REUSED),
    ({Known.ON_ITS_WAY}, ANY, ANY, ANY, Step.JOIN),
    ({Known.OTHER_UNDECIDED}, ANY, ANY, ANY, Step.AWAIT_DECISION),
    ({Known.REMEMBERED}, ANY, ANY, ANY, Step.ASK_ROW),
    (NO_OUTCOME, UNASKED, ANY, ANY, Step.ASK_LIMITS),
    (NO_OUTCOME, REFUSED, ANY, ANY, Step.LIMITED),
    (MAY_STAND_IN_THE_LOG, ALLOWED, ANY, ANY, Step.APPEND),
    ({Known.NOTHING}, ALLOWED, {Gate.OPEN}, ANY, Step.APPEND),
    ({Known.NOTHING}, ALLOWED, CLOSED, {View.UNASKED}, Step.ASK_END),
    ({Known.NOTHING}, ALLOWED, CLOSED, {View.FRESH}, Step.REFUSE),
    ({Known.NOTHING}, ALLOWED, CLOSED, {View.STALE}, Step.BUSY),
    ({Known.NOTHING}, ALLOWED, {Gate.NOT_OPEN}, {View.STALE_SPARE}, Step.BUSY),
    ({Known.NOTHING}, ALLOWED, {Gate.SOLD_OUT, Gate.UNKNOWN_PRODUCT}, {View.STALE_SPARE}, Step.APPEND),
)


@pytest.mark.parametrize("case", product(Known, Limits, Gate, View), ids=lambda case: "-".join(e.name for e in case))
def test_each_combination_has_exactly_one_row(case: tuple[Known, Limits, Gate, View]) -> None:
    """And the decider gives that row's step."""
    steps = [step for *sets, step in TABLE if all(not one or have in one for one, have in zip(sets, case, strict=True))]  # type: ignore[operator]
    assert len(steps) == 1
    assert decide(*case) is steps[0]


def test_the_gate_refuses_only_what_is_sure() -> None:
    """Sold out at zero, not open well before the opening; unknown time or a last unit goes to the log."""
    gone = folded([listed(1, opens_at_ms=10_000)]).products["lamp"]  # type: ignore[index]
    assert gate_of(None, 0) is Gate.UNKNOWN_PRODUCT
    assert gate_of(gone, None) is Gate.OPEN
    assert gate_of(gone, 10_000 - OPENING_GRACE_MS) is Gate.OPEN
    assert gate_of(gone, 10_000 - OPENING_GRACE_MS - 1) is Gate.NOT_OPEN
    gone.closes_at_ms = 20_000
    assert gate_of(gone, 19_999) is Gate.OPEN
    assert gate_of(gone, 20_000) is Gate.NOT_OPEN
    gone.available = 0
    assert gate_of(gone, 15_000) is Gate.SOLD_OUT
    gone.status = "paused"
    assert gate_of(gone, 15_000) is Gate.NOT_OPEN


def test_the_gate_opens_again_with_the_last_decision() -> None:
    """It follows the projection."""
    projection = folded([listed(1)], [reserved(left=0)])
    assert gate_of(projection.products["lamp"], None) is Gate.SOLD_OUT  # type: ignore[index]
