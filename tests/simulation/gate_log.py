"""Gate model: the log of one partition, its fold, and what Postgres shows of it.

One unit, held by purchase L at the start. K is the purchase that the claims are about; it can be sent with two bodies.
Pure: a log is a tuple of entries, everything else is derived from a prefix of it.
"""

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple


class Body(StrEnum):
    """The bodies that are sent under the key of K."""

    A = "A"
    B = "B"


class Entry(StrEnum):
    """A record of `requests`."""

    L = "L"
    K_A = "K"
    K_B = "K with body B"
    M = "M"
    L_RELEASED = "the release of L"
    K_RELEASED = "the release of K"
    MANY_REJECTIONS = "250,000 rejections"
    PRODUCT_RETIRED = "the end of the product"


class Decision(StrEnum):
    """What the fold says to a record; DONE for those that are no purchases."""

    RESERVED = "reserved"
    REJECTED = "rejected"
    IGNORED = "ignored"
    IGNORED_RETIRED = "ignored, retired"
    DONE = "done"


class Status(StrEnum):
    """The outcomes of a purchase."""

    REJECTED = "rejected"
    RESERVED = "reserved"


Log = tuple[Entry, ...]
ENTRY = {Body.A: Entry.K_A, Body.B: Entry.K_B}
BODY = {entry: body for body, entry in ENTRY.items()}
VERSION = {Status.REJECTED: 1, Status.RESERVED: 2}


class FoldRules(NamedTuple):
    """The rules of the fold; the defaults are those of the design."""

    remembers_ended: bool = True
    ignores_when_retired: bool = True


FOLD_AS_WRITTEN = FoldRules()


class Fold(NamedTuple):
    """What the fold remembers after a prefix of the log."""

    available: int = 0
    reserved: Body | None = None
    held: bool = False
    rejected: Body | None = None
    retired: bool = False
    decisions: tuple[Decision, ...] = ()


class History(NamedTuple):
    """What ever happened to K: facts, whether the fold still remembers them or not."""

    reservations: int = 0
    bought: Body | None = None
    rejected: Body | None = None  # of several rejections the first
    offset: int | None = None  # of the request that got the reservation, else the first rejection


class Row(NamedTuple):
    """The row of K in Postgres."""

    status: Status
    body: Body
    version: int


@lru_cache(None)
def fold(log: Log, rules: FoldRules) -> Fold:
    """The state after all of `log`, and all its decisions."""
    if not log:
        return Fold()
    before, entry = fold(log[:-1], rules), log[-1]
    after, decision = _evolve(before, entry, rules)
    return after._replace(decisions=(*before.decisions, decision))


def _evolve(state: Fold, entry: Entry, rules: FoldRules) -> tuple[Fold, Decision]:
    match entry:
        case Entry.L:
            return state, Decision.RESERVED
        case Entry.K_A | Entry.K_B:
            return _decide(state, BODY[entry], rules)
        case Entry.M:
            if state.retired:
                return state, Decision.IGNORED_RETIRED
            if state.available == 0:
                return state, Decision.REJECTED
            return state._replace(available=state.available - 1), Decision.RESERVED
        case Entry.L_RELEASED:
            return state._replace(available=state.available + 1), Decision.DONE
        case Entry.K_RELEASED:
            if not state.held:
                return state, Decision.IGNORED
            reserved = state.reserved if rules.remembers_ended else None
            return state._replace(available=state.available + 1, held=False, reserved=reserved), Decision.DONE
        case Entry.MANY_REJECTIONS:
            return state._replace(rejected=None), Decision.DONE
        case Entry.PRODUCT_RETIRED:
            return state._replace(retired=True, reserved=None, held=False), Decision.DONE


def _decide(state: Fold, body: Body, rules: FoldRules) -> tuple[Fold, Decision]:
    """A purchase K: one that is remembered is ignored, so that the first outcome stands."""
    if state.reserved is not None or state.rejected is not None:
        return state, Decision.IGNORED
    if state.retired and rules.ignores_when_retired:
        return state, Decision.IGNORED_RETIRED
    if state.available == 0 or state.retired:
        return state._replace(rejected=body), Decision.REJECTED
    return state._replace(available=state.available - 1, reserved=body, held=True), Decision.RESERVED


@lru_cache(None)
def history(log: Log, rules: FoldRules) -> History:
    """What happened to K in all of `log`."""
    past = History()
    for offset, (entry, decision) in enumerate(zip(log, fold(log, rules).decisions, strict=True)):
        if entry not in BODY:
            continue
        if decision is Decision.RESERVED:
            first = past.bought is None
            past = past._replace(
                reservations=past.reservations + 1,
                bought=BODY[entry] if first else past.bought,
                offset=offset if first else past.offset,
            )
        elif decision is Decision.REJECTED and past.offset is None:
            past = past._replace(rejected=BODY[entry], offset=offset)
    return past


def row(log: Log, rules: FoldRules, counted: bool) -> Row | None:
    """The row of K when the order-writer has applied `log`. `counted`: a version counts changes (a broken rule)."""
    past = history(log, rules)
    if past.bought is not None:
        version = 1 + (past.rejected is not None) if counted else VERSION[Status.RESERVED]
        return Row(Status.RESERVED, past.bought, version)
    if past.rejected is not None:
        return Row(Status.REJECTED, past.rejected, VERSION[Status.REJECTED])
    return None
