"""Gate model: a POST of K at one gateway, from its arrival through gate and row to its answer or to the log."""

from collections.abc import Iterator
from typing import assert_never

from tests.simulation import gate_claims as claims
from tests.simulation.gate_decide import Known, Step, View
from tests.simulation.gate_log import Body
from tests.simulation.gate_moves import Move, answer, ends_named, heard, moved
from tests.simulation.gate_world import (
    Accepted,
    Barrier,
    Decided,
    EndedUnknown,
    Ids,
    Moment,
    Rival,
    Send,
    Sent,
    remembered,
)


def post_moves(at: Moment) -> Iterator[Move]:
    """A new send arrives, or one that waits here goes on."""
    if at.shared.left.sends:
        yield from arrives(at.spent("sends"), Body.A)
    if at.shared.left.other_sends:
        yield from arrives(at.spent("other_sends"), Body.B)
    send = at.gateway.send
    if send is not None:
        yield from at_gate(at, send) if send.at_gate else reads_row(at, send)
    for body in at.gateway.disputing:
        yield dispute_ends(at, body)


def arrives(at: Moment, body: Body) -> Iterator[Move]:
    """A send of K with this body."""
    name = "POST" if body is Body.A else "POST with body B"
    view = _view_at_arrival(at)
    step = at.rules.decide(known_of(at, body), at.gate, view)
    if step is Step.JOIN:
        yield moved(joined(at), f"{name} joins the one on its way")
    else:
        yield from taken(at, step, Send(body, remembered(at.shared.log, at.rules)), name)


def known_of(at: Moment, body: Body) -> Known:
    """What the gateway knows of K when a send with this body asks."""
    record, send = at.gateway.record, at.gateway.send
    if isinstance(record, Decided):
        return Known.DECIDED if record.body == body else Known.DECIDED_OTHER_BODY
    here = send or record
    if here is not None and here.body != body:
        return Known.ON_ITS_WAY_OTHER_BODY if at.rules.mismatch_needs_decision else Known.DECIDED_OTHER_BODY
    if send is not None or isinstance(record, Sent):
        return Known.ON_ITS_WAY
    if isinstance(record, Accepted):
        return Known.ACCEPTED
    if isinstance(record, EndedUnknown):
        return Known.ENDED_UNKNOWN
    return Known.ID_REMEMBERED if _id_hits(at) else Known.UNKNOWN


def known_to_waiting(at: Moment, send: Send) -> Known:
    """The look after a wait: a hit of the set is false if a row was absent at a progress that covers the view."""
    known = known_of(at.with_gateway(send=None), send.body)
    absent = send.absent_at is not None and (
        send.absent_at >= at.gateway.applied or not at.rules.absent_row_must_cover_view
    )
    return Known.UNKNOWN if known is Known.ID_REMEMBERED and absent else known


def taken(at: Moment, step: Step, send: Send, name: str) -> Iterator[Move]:
    """What follows from a step of the decider for `send`, which is not among those that wait at this moment."""
    record = at.gateway.record
    match step:
        case Step.REPLAY:
            assert isinstance(record, Decided)
            yield answer(at, f"{name} replays", send.body, record)
        case Step.MISMATCH:
            yield moved(at, f"{name}: 422", claims.mismatch_told(at, send.body))
        case Step.SAY_ACCEPTED:
            yield accepted_again(at, name)
        case Step.JOIN:
            yield moved(at, f"{name} joins the one on its way")
        case Step.WAIT_FOR_DECISION:
            disputing = tuple(sorted({*at.gateway.disputing, send.body}))
            yield moved(at.with_gateway(disputing=disputing), f"{name} waits for the decision")
        case Step.READ_ROW:
            waiting = send._replace(at_gate=False, end=None, absent_at=None)
            yield moved(at.with_gateway(send=waiting), f"{name} asks for the row")
        case Step.AWAIT_FRESH_VIEW:
            waiting = send._replace(at_gate=True, end=None)
            yield moved(_older_rival(at.with_gateway(send=waiting)), f"{name} waits at the gate")
        case Step.REFUSE:
            yield moved(at, f"{name}: sold out", claims.sold_out(at, send.stood))
        case Step.TRY_LATER:
            yield moved(at, f"{name}: 503, try later")
            yield appended(at, send.body, name)
        case Step.APPEND:
            yield appended(at, send.body, name)
        case _:
            assert_never(step)


def appended(at: Moment, body: Body, name: str) -> Move:
    """A request for K goes to the log."""
    in_flight = tuple(sorted((*at.shared.in_flight, body)))
    after = at.with_shared(in_flight=in_flight).with_gateway(record=Sent(body))
    return moved(after, f"{name}: to the log")


def accepted_again(at: Moment, name: str) -> Move:
    """202 by belief alone: a repeat asks for the end, so that what the broker lost is found out."""
    record = at.gateway.record
    assert isinstance(record, Accepted)
    watched = record.watched or at.rules.repeat_asks_end
    after = at.with_gateway(record=record._replace(watched=watched))
    found_out = heard(after, len(at.shared.log)).at if watched else after
    return moved(after, f"{name}: 202 again", claims.accepted_told_again(at, found_out))


def joined(at: Moment) -> Moment:
    """Joining one that waits at the gate makes its arrival now: an end that was named before counts no more."""
    send = at.gateway.send
    if send is None:
        return at
    stood = send.stood or remembered(at.shared.log, at.rules)
    if not at.rules.joining_renews_arrival:
        return at.with_gateway(send=send._replace(stood=stood))
    return _older_rival(at.with_gateway(send=send._replace(stood=stood, end=None)))


def at_gate(at: Moment, send: Send) -> Iterator[Move]:
    """One that waits until the view is fresh for its arrival, or for so long that it is told to come back."""
    free = at.with_gateway(send=None)
    if send.end is None:
        for named in ends_named(at):
            end = named.end if named.usable else None
            after = named.at.with_gateway(send=send._replace(end=end))
            yield moved(after, f"hears that the end is {named.end}", named.broken)
    elif send.end <= at.gateway.applied:
        known = known_to_waiting(at, send) if at.rules.second_look else Known.UNKNOWN
        yield from taken(free, at.rules.decide(known, at.gate, View.FRESH), send, "the view is fresh, the send")
    step = at.rules.decide(known_to_waiting(at, send), at.gate, View.LATE)
    yield from taken(free, step, send, "no fresh view in time, the send")


def reads_row(at: Moment, send: Send) -> Iterator[Move]:
    """One whose id is remembered: the row decides; without it the log does, unless the hit was a false one."""
    free = at.with_gateway(send=None)
    if send.absent_at is not None:
        known = known_to_waiting(at, send)
        step = Step.APPEND if known is Known.ID_REMEMBERED else at.rules.decide(known, at.gate, View.NOT_YET)
        yield from taken(free, step, send, "without a row the send")
        return
    row = at.row()
    if row is not None:
        yield answer(free, "reads the row", send.body, row)
    else:
        progress = at.shared.written
        yield moved(at.with_gateway(send=send._replace(absent_at=progress)), f"finds no row at progress {progress}")
    yield appended(free, send.body, "Postgres is away, the send")


def dispute_ends(at: Moment, body: Body) -> Move:
    """Another body was on its way: by now it is decided, or this one is told to try again."""
    free = at.with_gateway(disputing=tuple(other for other in at.gateway.disputing if other is not body))
    if isinstance(at.gateway.record, Decided):
        return answer(free, "another body waited", body, at.gateway.record)
    if not _id_hits(at):
        return moved(free, "another body waited: 409, in flight", claims.in_flight_told(at))
    row = at.row()
    return answer(free, "another body reads the row", body, row) if row else moved(free, "another body: 503")


def _id_hits(at: Moment) -> bool:
    return at.gateway.ids is not Ids.NONE or at.world.filter_always_hits


def _view_at_arrival(at: Moment) -> View:
    match at.rules.barrier:
        case Barrier.AFTER_ARRIVAL:
            return View.NOT_YET
        case Barrier.BEFORE_ARRIVAL:
            return View.FRESH if 0 < at.gateway.cached_end <= at.gateway.applied else View.NOT_YET
        case Barrier.NONE:
            return View.FRESH
        case _:
            assert_never(at.rules.barrier)


def _older_rival(at: Moment) -> Moment:
    """What was produced before an arrival is no end for it."""
    rival: Rival | None = at.gateway.rival
    if rival is None or not at.rules.earlier_acknowledgement_is_no_end:
        return at
    return at.with_gateway(rival=rival._replace(since_arrival=False))
