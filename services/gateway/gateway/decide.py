"""The decider of a purchase at the gateway: from what is known, what the limits say, what the sale gate says and how
fresh the view is, to the next step. Pure, and closed: every combination has exactly one row.

A step is either a final answer or the one question that has to be asked next. Batches, appends and waits carry steps
out and decide nothing. Steps and inputs are enum members, so an ordinary purchase allocates nothing here.
"""

from enum import Enum, auto
from typing import assert_never

from gateway.projection import OPENING_GRACE_MS, Product


class Known(Enum):
    """What this gateway knows of a purchase id, compared with the body in hand."""

    NOTHING = auto()  # neither in memory nor in the set of remembered ids
    ACCEPTED = auto()  # acknowledged here with the same body, not decided yet
    SAME_BODY = auto()  # decided, by the log or its row, with the same body
    OTHER_BODY = auto()  # decided with another body
    ON_ITS_WAY = auto()  # an earlier send with the same body has no answer yet
    OTHER_UNDECIDED = auto()  # accepted or on its way here with another body
    UNSETTLED = auto()  # an earlier send with the same body ended without an acknowledgement: it may still land
    REMEMBERED = auto()  # the log answered it, but not what is in memory: the row has to be asked
    UNPROVEN = auto()  # the row was asked: it neither shows the purchase nor proves its absence


class Limits(Enum):
    """The verdict of the rate limits."""

    UNASKED = auto()
    ALLOWED = auto()
    REFUSED = auto()


class Gate(Enum):
    """What the sale gate says of a new purchase, by the last known state of its product."""

    OPEN = auto()
    SOLD_OUT = auto()
    NOT_OPEN = auto()
    UNKNOWN_PRODUCT = auto()


class View(Enum):
    """Whether the view of the product's partition is known to cover the arrival of the purchase."""

    UNASKED = auto()
    FRESH = auto()
    STALE = auto()  # not in time
    STALE_SPARE = auto()  # not in time, and the log still has room for a few that cannot be judged here


class Step(Enum):
    """What happens next."""

    REPLAY = auto()  # the first answer holds
    KEY_REUSED = auto()  # 422: another body was decided under this key
    JOIN = auto()  # share the answer of the send that is on its way
    AWAIT_DECISION = auto()  # another body came first and is undecided
    ASK_ROW = auto()
    ASK_LIMITS = auto()
    LIMITED = auto()  # 429
    ASK_END = auto()  # ask where `requests` ends, and wait until the view covers it
    REFUSE = auto()  # the gate's answer: no outcome, nothing logged
    BUSY = auto()  # 503: the gate cannot be sure, and the log must not take what it would refuse
    APPEND = auto()


def decide(known: Known, limits: Limits, gate: Gate, view: View) -> Step:
    """The next step for a purchase."""
    match known:
        case Known.SAME_BODY | Known.ACCEPTED:
            return Step.REPLAY
        case Known.OTHER_BODY:
            return Step.KEY_REUSED
        case Known.ON_ITS_WAY:
            return Step.JOIN
        case Known.OTHER_UNDECIDED:
            return Step.AWAIT_DECISION
        case Known.REMEMBERED:
            return Step.ASK_ROW
        case Known.UNSETTLED | Known.UNPROVEN:
            # It may stand in the log: only the fold may say no to it.
            return _limited(limits) or Step.APPEND
        case Known.NOTHING:
            return _limited(limits) or _at_gate(gate, view)
        case _:
            assert_never(known)


def _limited(limits: Limits) -> Step | None:
    match limits:
        case Limits.UNASKED:
            return Step.ASK_LIMITS
        case Limits.REFUSED:
            return Step.LIMITED
        case Limits.ALLOWED:
            return None
        case _:
            assert_never(limits)


def _at_gate(gate: Gate, view: View) -> Step:
    if gate is Gate.OPEN:
        return Step.APPEND
    match view:
        case View.UNASKED:
            return Step.ASK_END
        case View.FRESH:
            return Step.REFUSE
        case View.STALE:
            return Step.BUSY
        case View.STALE_SPARE:
            # The window is judged by the broker's clock, which needs no decisions: nothing is learned by appending.
            return Step.BUSY if gate is Gate.NOT_OPEN else Step.APPEND
        case _:
            assert_never(view)


def gate_of(product: Product | None, now_ms: int | None) -> Gate:
    """What the sale gate says: only what is sure, so that no winner is sent away; the log judges the edge.

    `now_ms` is the broker's time at the latest that is known to have come; None while it is unknown.
    """
    if product is None:
        return Gate.UNKNOWN_PRODUCT
    if product.status != "open":
        return Gate.NOT_OPEN
    if now_ms is not None:
        if product.opens_at_ms is not None and now_ms + OPENING_GRACE_MS < product.opens_at_ms:
            return Gate.NOT_OPEN
        if product.closes_at_ms is not None and now_ms >= product.closes_at_ms:
            return Gate.NOT_OPEN
    return Gate.SOLD_OUT if product.available <= 0 else Gate.OPEN
