"""The decider of a purchase at the gateway: from what is known, what the limits say, what the sale gate says and how
fresh the view is, to the next step. Pure, and closed: every combination has exactly one row.

A step is either a final answer or the one question that comes next. Batches, appends and waits carry steps
out and decide nothing. Steps and inputs are words of fixed lists, so an ordinary purchase allocates nothing here.
"""

from typing import Literal, assert_never

from gateway.read_side.projection import OPENING_GRACE_MS, Product

# What this gateway knows of a purchase id, compared with the body in hand.
Known = Literal[
    "nothing",  # neither in memory nor among the remembered ids
    "accepted",  # acknowledged here with the same body, not decided yet
    "same body",  # decided, by the log or its row, with the same body
    "other body",  # decided with another body
    "on its way",  # an earlier send with the same body has no answer yet
    "other undecided",  # accepted or on its way here with another body
    "unsettled",  # an earlier send with the same body ended without an acknowledgement: it may still land
    "remembered",  # the log answered it, but not what is in memory: the row has to be read
    "unproven",  # the row was read: it neither shows the purchase nor proves its absence
]
Limits = Literal["unasked", "allowed", "refused"]
# What the sale gate says of a new purchase, by the last known state of its product.
Gate = Literal["open", "sold out", "not open", "unknown product"]
# Whether the view of the product's partition covers the arrival of the purchase. "spare": it does not in time, but the
# log still has room for a few that cannot be judged here.
View = Literal["unasked", "fresh", "stale", "spare"]
Step = Literal[
    "replay",  # the first answer holds
    "key reused",  # 422: another body was decided under this key
    "join",  # share the answer of the send that is on its way
    "await decision",  # another body came first and is undecided
    "ask row",
    "ask limits",
    "limited",  # 429
    "ask end",  # ask where `requests` ends, and wait until the view covers it
    "refuse",  # the gate's answer: no outcome, nothing logged
    "busy",  # 503: the gate cannot be sure, and the log must not take what it would refuse
    "append",
]


def decide(known: Known, limits: Limits, gate: Gate, view: View) -> Step:
    """The next step for a purchase."""
    match known:
        case "nothing":
            return _limited(limits) or _at_gate(gate, view)
        case "same body" | "accepted":
            return "replay"
        case "other body":
            return "key reused"
        case "on its way":
            return "join"
        case "other undecided":
            return "await decision"
        case "remembered":
            return "ask row"
        case "unsettled" | "unproven":
            # It may stand in the log: only the fold may say no to it.
            return _limited(limits) or "append"
        case _:
            assert_never(known)


def _limited(limits: Limits) -> Step | None:
    match limits:
        case "unasked":
            return "ask limits"
        case "refused":
            return "limited"
        case "allowed":
            return None
        case _:
            assert_never(limits)


def _at_gate(gate: Gate, view: View) -> Step:
    if gate == "open":
        return "append"
    match view:
        case "unasked":
            return "ask end"
        case "fresh":
            return "refuse"
        case "stale":
            return "busy"
        case "spare":
            # The window is judged by the broker's clock, which needs no decisions: nothing is learned by appending.
            return "busy" if gate == "not open" else "append"
        case _:
            assert_never(view)


def gate_of(product: Product | None, now_ms: int | None) -> Gate:
    """What the sale gate says: only what is sure, so that no winner is sent away; the log judges the edge.

    `now_ms` is the broker's time at the latest that is known to have come; None while it is unknown.
    """
    if product is None:
        return "unknown product"
    if product.status != "open":
        return "not open"
    if now_ms is not None:
        if product.opens_at_ms is not None and now_ms + OPENING_GRACE_MS < product.opens_at_ms:
            return "not open"
        if product.closes_at_ms is not None and now_ms >= product.closes_at_ms:
            return "not open"
    return "sold out" if product.available <= 0 else "open"
