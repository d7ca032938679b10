"""Gate model: the gateway's decision for a POST of K, as a table.

This is the one place where a gateway of the model chooses what to do with a send: at its arrival and again after each
wait. Another decider of this shape, such as the gateway's own, is plugged in as `Rules.decide`; each world is then
walked by `replace(world, rules=Rules(decide=...))`.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import assert_never


class Known(StrEnum):
    """What this gateway knows of the purchase when it is asked."""

    DECIDED = "decided"  # by a decision that it applied, with this body
    DECIDED_OTHER_BODY = "decided with another body"
    ID_REMEMBERED = "its id is remembered"  # but not its record: the row has it
    ACCEPTED = "accepted here"  # acknowledged by the log, believed until decided
    ON_ITS_WAY = "on its way here"  # waits at the gate, reads the row or waits for its acknowledgement
    ON_ITS_WAY_OTHER_BODY = "on its way here with another body"
    ENDED_UNKNOWN = "ended unknown here"  # no acknowledgement in time: it may stand in the log
    UNKNOWN = "unknown"


class Gate(StrEnum):
    """What the sale gate says by the last known state."""

    SELLS = "sells"
    REFUSES = "refuses"


class View(StrEnum):
    """How this gateway's view stands to the arrival of the send."""

    NOT_YET = "not known to be fresh yet"
    FRESH = "fresh"
    LATE = "not fresh in time"


class Step(StrEnum):
    """What the gateway does."""

    REPLAY = "says the first answer again"
    MISMATCH = "422, another body"
    SAY_ACCEPTED = "202 again"
    JOIN = "joins the one that is on its way"
    WAIT_FOR_DECISION = "waits for the decision"
    READ_ROW = "reads the row"
    AWAIT_FRESH_VIEW = "waits at the gate"
    REFUSE = "409, sold out"
    TRY_LATER = "503, or to the log while the allowance lasts"
    APPEND = "to the log"


Decide = Callable[[Known, Gate, View], Step]


def step_of(known: Known, gate: Gate, view: View) -> Step:
    """The rules as written."""
    match known:
        case Known.DECIDED:
            return Step.REPLAY
        case Known.DECIDED_OTHER_BODY:
            return Step.MISMATCH
        case Known.ID_REMEMBERED:
            return Step.READ_ROW
        case Known.ACCEPTED:
            return Step.SAY_ACCEPTED
        case Known.ON_ITS_WAY:
            return Step.JOIN
        case Known.ON_ITS_WAY_OTHER_BODY:
            return Step.WAIT_FOR_DECISION
        case Known.ENDED_UNKNOWN:
            return Step.APPEND
        case Known.UNKNOWN:
            return _at_the_gate(gate, view)
        case _:
            assert_never(known)


def _at_the_gate(gate: Gate, view: View) -> Step:
    if gate is Gate.SELLS:
        return Step.APPEND
    match view:
        case View.NOT_YET:
            return Step.AWAIT_FRESH_VIEW
        case View.FRESH:
            return Step.REFUSE
        case View.LATE:
            return Step.TRY_LATER
        case _:
            assert_never(view)
