"""Gate model: what a move of one gateway is, and the answers that it gives. Used by its sends, reads and life."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.simulation import gate_claims as claims
from tests.simulation.gate_claims import Broken
from tests.simulation.gate_log import Row, Status
from tests.simulation.gate_world import Accepted, Decided, Gateway, Ids, Moment, Shared


class Move(NamedTuple):
    """One step of one gateway: what is shared and its own memory afterwards, and which claim it broke."""

    label: str
    shared: Shared
    gateway: Gateway
    broken: Broken | None = None


def moved(at: Moment, label: str, broken: Broken | None = None) -> Move:
    """The move that leads to `at`."""
    return Move(label, at.shared, at.gateway, broken)


def show(at: Moment, label: str, outcome: Row | Decided) -> Move:
    """Tell the outcome."""
    broken = claims.outcome_told(at, outcome.status, outcome.version)
    after = at.with_shared(told=at.shared.told | {(outcome.version, outcome.status)})
    after = after.with_gateway(told=max(at.gateway.told, outcome.version))
    if outcome.status is Status.RESERVED:
        after = _held_units(after)
    return moved(after, f"{label}: {outcome.status}, version {outcome.version}", broken)


def _held_units(at: Moment) -> Moment:
    """What was told to hold units is remembered as such, also where only the row said so: it may be ahead of the view.

    A rejection that is known from an older part of the log is dropped, or the next answer would go back to it.
    """
    record = at.gateway.record
    if isinstance(record, Decided) and record.status is Status.REJECTED and at.rules.told_row_replaces_rejection:
        at = at.with_gateway(record=None)
    return at.with_gateway(ids=Ids.HELD) if at.rules.keeps_reserved_ids else at


def answer(at: Moment, label: str, body: str, outcome: Row | Decided) -> Move:
    """Answer a send whose purchase is decided: the first answer for the same body, 422 for another."""
    if body == outcome.body:
        return show(at, label, outcome)
    return moved(at, f"{label}: 422", claims.mismatch_told(at, body))


class Heard(NamedTuple):
    """An end of requests that the broker named, and what the gateway believes now."""

    at: Moment
    end: int
    usable: bool
    broken: Broken | None


def ends_named(at: Moment) -> Iterator[Heard]:
    """The ends that the broker may name now: the true one and, from a deposed leader, an older one."""
    true_end = len(at.shared.log)
    yield heard(at, true_end)
    if at.world.stale_ends and true_end > 1:
        yield heard(at, true_end - 1)


def heard(at: Moment, end: int) -> Heard:
    """An end below what was applied or acknowledged here is a lost tail: no view is fresh by it.

    What was accepted here beyond it is believed no longer. (It is compared with what was acknowledged before it was
    asked for: an acknowledgement that overtakes the answer proves nothing.) A true end would do even so: that such an
    end makes no view fresh is a guard against some old ends of a deposed leader, and no claim here depends on it.
    """
    gateway, record = at.gateway, at.gateway.record
    usable = end >= max(gateway.applied, gateway.acknowledged)
    if not isinstance(record, Accepted):
        return Heard(at, end, usable, None)
    if end > record.offset:
        return Heard(at.with_gateway(record=record._replace(watched=False)), end, usable, None)
    if not at.rules.end_below_forgets:
        return Heard(at, end, usable, None)
    return Heard(at.with_gateway(record=None), end, usable, claims.called_lost(at, record.offset))
