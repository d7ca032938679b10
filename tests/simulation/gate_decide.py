"""Gate model: the gateway's decision for a POST of K, as a table.

This is the one place where a gateway of the model chooses what to do with a send: at its arrival and again after each
wait. It is the shipped decider that chooses; another one of this shape is plugged in as `Rules.decide`, and each world
is then walked by `replace(world, rules=Rules(decide=...))`.
"""

from collections.abc import Callable
from enum import StrEnum

from gateway.admission import decide as decider


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


_KNOWN: dict[Known, decider.Known] = {
    Known.DECIDED: "same body",
    Known.DECIDED_OTHER_BODY: "other body",
    Known.ID_REMEMBERED: "remembered",
    Known.ACCEPTED: "accepted",
    Known.ON_ITS_WAY: "on its way",
    Known.ON_ITS_WAY_OTHER_BODY: "other undecided",
    Known.ENDED_UNKNOWN: "unsettled",
    Known.UNKNOWN: "nothing",
}
_GATE: dict[Gate, decider.Gate] = {Gate.SELLS: "open", Gate.REFUSES: "sold out"}
_VIEW: dict[View, decider.View] = {View.NOT_YET: "unasked", View.FRESH: "fresh", View.LATE: "stale"}
_STEP: dict[decider.Step, Step] = {
    "replay": Step.REPLAY,
    "key reused": Step.MISMATCH,
    "join": Step.JOIN,
    "await decision": Step.WAIT_FOR_DECISION,
    "ask row": Step.READ_ROW,
    "ask end": Step.AWAIT_FRESH_VIEW,
    "refuse": Step.REFUSE,
    "busy": Step.TRY_LATER,
    "append": Step.APPEND,
}


def step_of(known: Known, gate: Gate, view: View) -> Step:
    """The shipped decider, for a send that the limits allow. It replays both kinds of first answers alike."""
    step = _STEP[decider.decide(_KNOWN[known], "allowed", _GATE[gate], _VIEW[view])]
    return Step.SAY_ACCEPTED if step is Step.REPLAY and known is Known.ACCEPTED else step
