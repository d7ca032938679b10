"""Gate model: a GET of K at one gateway: memory, the row, a fresh view, memory once more, 404."""

from collections.abc import Iterator

from tests.simulation import gate_claims as claims
from tests.simulation.gate_moves import Move, ends_named, moved, show
from tests.simulation.gate_world import Accepted, Decided, Get, Ids, Moment, stands


def get_moves(at: Moment) -> Iterator[Move]:
    """A GET arrives, or the one that waits here goes on. (The row and the end are asked for in any order.)"""
    get = at.gateway.get
    if get is None:
        if at.shared.left.gets:
            yield arrives(at.spent("gets"))
        return
    if get.absent_at is None:
        yield reads_row(at, get)
    if get.end is None:
        yield from hears_end(at, get)
    elif get.end < at.gateway.acknowledged and not at.rules.acknowledged_when_asked:
        yield taken_for_lost(at, get)
    elif get.end <= at.gateway.applied and get.absent_at is not None:
        yield ends(at, get)
    yield moved(at.with_gateway(get=None), "GET: 503, no fresh view in time")


def arrives(at: Moment) -> Move:
    """Memory first."""
    record = at.gateway.record
    if isinstance(record, Decided):
        return show(at, "GET", record)
    if isinstance(record, Accepted):
        return moved(at, "GET: pending")
    return moved(at.with_gateway(get=Get(stands(at.shared.log, at.rules))), "GET arrives")


def reads_row(at: Moment, get: Get) -> Move:
    """The row, or its absence at a progress read in the same statement."""
    row = at.row()
    if row is not None:
        return show(at.with_gateway(get=None), "GET reads the row", row)
    progress = at.shared.written
    return moved(at.with_gateway(get=get._replace(absent_at=progress)), f"GET finds no row at progress {progress}")


def hears_end(at: Moment, get: Get) -> Iterator[Move]:
    """An end of requests that was asked for after the arrival."""
    for named in ends_named(at):
        end = named.end if named.usable else None
        after = named.at.with_gateway(get=get._replace(end=end))
        yield moved(after, f"GET hears that the end is {named.end}", named.broken)


def taken_for_lost(at: Moment, get: Get) -> Move:
    """By a weaker rule, the end is compared with what was acknowledged since."""
    record = at.gateway.record
    broken = claims.called_lost(at, record.offset) if isinstance(record, Accepted) else None
    return moved(at.with_gateway(get=get._replace(end=None), record=None), "GET: the end is too low", broken)


def ends(at: Moment, get: Get) -> Move:
    """The view is fresh for the arrival: memory once more, and 404 only where the absent row proves something."""
    free = at.with_gateway(get=None)
    record, absent_at = at.gateway.record, get.absent_at
    assert absent_at is not None
    if isinstance(record, Decided):
        return show(free, "GET", record)
    if isinstance(record, Accepted):
        return moved(free, "GET: pending")
    hit = at.gateway.ids is not Ids.NONE or at.world.filter_always_hits
    if hit and absent_at < at.gateway.applied and at.rules.absent_row_must_cover_view:
        return moved(free, "GET: 503, the row is not there yet")
    if absent_at < at.gateway.floor and at.rules.floor:
        return moved(free, f"GET: 503, progress {absent_at} is below the floor {at.gateway.floor}")
    return moved(free, "GET: 404", claims.not_found(at, get.stood))
