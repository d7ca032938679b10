"""Gate model: what must be true of every answer, judged by the log itself.

Each function judges one answer, and says how it breaks a claim, or None.
"""

from typing import NamedTuple

from tests.simulation.gate_log import BODY, Log, Status, history
from tests.simulation.gate_world import Accepted, Moment, Rules

CLAIMS = {
    "G1": "a purchase that stood in the log at its arrival is never told 'sold out'",
    "G2": "a purchase that stands in the log when it is asked for is never told 404",
    "G3": "a purchase has at most one effective reservation",
    "G4": "'reserved' is told only of an effective reservation",
    "G5": "a version has one status everywhere, and no gateway goes back",
    "G6": "422 is told only to a body that lost, 409 in-flight only before a decision",
    "G7": "what the broker lost is found out by a repeat, and nothing else is called lost",
}


class Broken(NamedTuple):
    """A claim that does not hold."""

    claim: str
    what: str


def sold_out(at: Moment, stood: bool) -> Broken | None:
    """G1, for a refusal of sends of which one found K in the log."""
    if not stood:
        return None
    if at.past.bought is not None:
        return Broken("G1", "sold out is told to a purchase that holds or held a unit")
    if at.decided.rejected is not None:
        return Broken("G1", "sold out, no outcome, is told to a purchase whose rejection the fold remembers")
    return Broken("G1", "sold out is told to a purchase that stands in the log undecided")


def not_found(at: Moment, stood: bool) -> Broken | None:
    """G2."""
    return Broken("G2", "404 is told of a purchase that stands in the log") if stood else None


def reserved_once(log: Log, rules: Rules) -> Broken | None:
    """G3, of the decided part of the log."""
    return Broken("G3", "two reservations of one purchase") if history(log, rules.fold).reservations > 1 else None


def outcome_told(at: Moment, status: Status, version: int) -> Broken | None:
    """G4 and G5."""
    if status is Status.RESERVED and at.past.bought is None:
        return Broken("G4", "reserved is told of what has no reservation")
    if any(told == version and other is not status for told, other in at.shared.told):
        return Broken("G5", f"version {version} is told with two statuses")
    if version < at.gateway.told:
        return Broken("G5", f"version {version} is told after version {at.gateway.told}")
    return None


def mismatch_told(at: Moment, body: str) -> Broken | None:
    """G6, for 422."""
    if at.past.bought == body:
        return Broken("G6", "422 is told to the body that was bought")
    if at.past.bought is None and at.past.rejected is None:
        return Broken("G6", "422 is told before a decision")
    return None


def in_flight_told(at: Moment) -> Broken | None:
    """G6, for 409: the view of this gateway has no decision that the fold remembers."""
    bought = history(at.shared.log[: at.gateway.applied], at.rules.fold).bought
    if bought is not None or at.view.rejected is not None:
        return Broken("G6", "409 in-flight is told after a decision")
    return None


def accepted_told_again(at: Moment, after_end: Moment) -> Broken | None:
    """G7, for a 202 told by belief alone. `after_end`: what the gateway believes after it hears the end.

    At rest nothing else will end the belief: all is decided and applied here, and nothing is on its way.
    """
    at_rest = at.gateway.applied == at.shared.decided == len(at.shared.log) and not at.shared.in_flight
    if at_rest and isinstance(after_end.gateway.record, Accepted):
        return Broken("G7", "202 is told again for what the broker lost, and nothing will find it out")
    return None


def called_lost(at: Moment, offset: int) -> Broken | None:
    """G7, for a record that a gateway takes for lost."""
    log = at.shared.log
    if offset < len(log) and log[offset] in BODY:
        return Broken("G7", "a record is called lost that stands in the log")
    return None
