"""Gate model: what happens to a gateway beside its sends and reads.

It applies decisions, hears acknowledgements and ends, forgets, dies and starts again.
"""

from collections.abc import Iterator

from tests.simulation import gate_claims as claims
from tests.simulation.gate_log import BODY, ENTRY, Body, Decision, Entry, Status, fold, history
from tests.simulation.gate_moves import Move, ends_named, moved, show
from tests.simulation.gate_world import (
    DOWN,
    Accepted,
    Barrier,
    Decided,
    EndedUnknown,
    Gateway,
    Ids,
    Life,
    Moment,
    Record,
    Rival,
    Sent,
    ids_after,
    kept,
    started,
    version_of,
)


def life_moves(at: Moment) -> Iterator[Move]:
    """What may happen to a gateway that runs."""
    gateway, left = at.gateway, at.shared.left
    if gateway.applied < at.shared.decided:
        yield applies(at)
    if left.kills:
        yield moved(at.spent("kills")._replace(gateway=DOWN), "is killed")
    if left.evictions and isinstance(gateway.record, Decided):
        yield evicts(at.spent("evictions"))
    match gateway.record:
        case Sent(body, None):
            if body in at.shared.in_flight:
                yield lands(at, body)
            yield moved(at.with_gateway(record=EndedUnknown(body)), "gets no acknowledgement in time: unknown")
        case Sent(body, int(offset)):
            yield acknowledged(at, body, offset)
            yield moved(at.with_gateway(record=EndedUnknown(body)), "gets no acknowledgement in time: unknown")
        case EndedUnknown():
            yield moved(at.with_gateway(record=None), "gives up what ended unknown 10 minutes ago")
        case Accepted(_, _, watched=True):
            for named in ends_named(at):
                yield moved(named.at, f"hears that the end is {named.end}", named.broken)
    if at.rules.barrier is Barrier.BEFORE_ARRIVAL:
        end = len(at.shared.log)
        yield moved(at.with_gateway(cached_end=end), f"hears that the end is {end}, for nobody")
    yield from rival_moves(at)


def start_moves(at: Moment) -> Iterator[Move]:
    """A gateway that is down starts from Postgres; by a weaker rule, ids and progress are read one after the other."""
    log = at.shared.log[: at.shared.written]
    if at.rules.starts_from_one_snapshot:
        yield moved(at._replace(gateway=started(log, at.rules)), f"starts from Postgres at progress {len(log)}")
    elif at.gateway.life is Life.DOWN:
        ids = kept(ids_after(log, at.rules), at.rules)
        yield moved(at.with_gateway(life=Life.STARTING, ids=ids), f"reads the ids at progress {len(log)}")
    else:
        gateway = Gateway(applied=len(log), ids=at.gateway.ids, floor=len(log))
        yield moved(at._replace(gateway=gateway), f"starts at progress {len(log)}")


def applies(at: Moment) -> Move:
    """The next decision."""
    offset = at.gateway.applied
    entry = at.shared.log[offset]
    decision = fold(at.shared.log[: offset + 1], at.rules.fold).decisions[-1]
    mark = at.gateway.acknowledged if at.gateway.acknowledged > offset + 1 else 0
    after = at.with_gateway(applied=offset + 1, acknowledged=mark)
    label = f"applies {entry}: {decision}"
    record = after.gateway.record
    if entry in BODY:
        return moved(_purchase_applied(after, BODY[entry], decision), label)
    if entry is Entry.MANY_REJECTIONS:
        after = _rejections_forgotten(after)
    if entry is Entry.PRODUCT_RETIRED and not at.rules.keeps_retired_ids:
        after = after.with_gateway(ids=Ids.NONE)
    if isinstance(record, Accepted) and record.offset == offset and at.rules.notices_lost:
        return moved(after.with_gateway(record=None), label, claims.called_lost(after, offset))
    return moved(after, label)


def _purchase_applied(at: Moment, body: Body, decision: Decision) -> Moment:
    record, ids, rules = at.gateway.record, at.gateway.ids, at.rules
    known: Record | None = record if isinstance(record, Decided) else None  # whatever else it was, it is decided now
    if decision is Decision.RESERVED:
        version = version_of(Status.RESERVED, record, rules)
        return at.with_gateway(record=Decided(Status.RESERVED, body, version), ids=Ids.HELD)
    if decision is Decision.REJECTED:
        rejection = Decided(Status.REJECTED, body, version_of(Status.REJECTED, None, rules))
        if not rules.rejected_never_replaces:
            return at.with_gateway(record=rejection, ids=max(ids, Ids.REJECTED))
        if ids is not Ids.HELD:
            return at.with_gateway(record=known or rejection, ids=Ids.REJECTED)
    return at.with_gateway(record=known)


def _rejections_forgotten(at: Moment) -> Moment:
    """The set of ids follows the fold's two generations."""
    return at.with_gateway(ids=Ids.NONE) if at.gateway.ids is Ids.REJECTED else at


def evicts(at: Moment) -> Move:
    """The full record goes: the floor rises to its decision, the id stays."""
    offset = history(at.shared.log[: at.gateway.applied], at.rules.fold).offset
    assert offset is not None
    floor = max(at.gateway.floor, offset + 1)
    return moved(
        at.with_gateway(record=None, floor=floor, ids=kept(at.gateway.ids, at.rules)), "forgets the record of K"
    )


def lands(at: Moment, body: Body) -> Move:
    """Its request for K lands; the acknowledgement is on its way."""
    offset = len(at.shared.log)
    in_flight = list(at.shared.in_flight)
    in_flight.remove(body)
    after = at.with_shared(log=(*at.shared.log, ENTRY[body]), in_flight=tuple(in_flight))
    return moved(after.with_gateway(record=Sent(body, offset)), f"its request lands: {ENTRY[body]} at {offset}")


def acknowledged(at: Moment, body: Body, offset: int) -> Move:
    """202. Where decisions have passed this place already, the broker lost the record in between."""
    if offset < at.gateway.applied and at.rules.notices_lost:
        return moved(
            at.with_gateway(record=None), "is acknowledged, but it is lost: 503", claims.called_lost(at, offset)
        )
    mark = max(at.gateway.acknowledged, offset + 1)
    after = at.with_gateway(record=Accepted(body, offset), acknowledged=mark if mark > at.gateway.applied else 0)
    if not at.rules.reserved_needs_decision and at.view.available:
        return show(after, "is acknowledged", Decided(Status.RESERVED, body, 2))
    return moved(after, "is acknowledged: 202")


def rival_moves(at: Moment) -> Iterator[Move]:
    """M through this gateway: its acknowledgement is an end for those that arrived before it was produced."""
    rival = at.gateway.rival
    if rival is None:
        if at.shared.left.rivals_here:
            since = at.gateway.send is not None or not at.rules.earlier_acknowledgement_is_no_end
            yield moved(at.spent("rivals_here").with_gateway(rival=Rival(since)), "sends M to the log")
        return
    if rival.landed_at is None:
        after = at.with_shared(log=(*at.shared.log, Entry.M))
        landed = rival._replace(landed_at=len(at.shared.log))
        yield moved(after.with_gateway(rival=landed), f"its M lands at {landed.landed_at}")
        return
    end = rival.landed_at + 1
    mark = max(at.gateway.acknowledged, end)
    after = at.with_gateway(rival=None, acknowledged=mark if mark > at.gateway.applied else 0)
    send = at.gateway.send
    if send is not None and send.at_gate and rival.since_arrival:
        after = after.with_gateway(send=send._replace(end=end if send.end is None else min(end, send.end)))
    yield moved(after, f"hears that M was acknowledged: the end is at least {end}")
