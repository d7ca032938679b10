"""Gate model: what happens around the gateways: the log grows or loses its tail, decisions and rows are made."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.simulation import gate_claims as claims
from tests.simulation.gate_claims import Broken
from tests.simulation.gate_log import BODY, ENTRY, Decision, Entry, Log, fold
from tests.simulation.gate_world import Gateway, Left, Rules, Shared, World, remembered, spent, stands


class Change(NamedTuple):
    """One step of what the gateways share."""

    label: str
    shared: Shared
    broken: Broken | None = None


def changes(world: World, shared: Shared) -> Iterator[Change]:
    """What may happen whatever the gateways do."""
    rules, log, left = world.rules, shared.log, shared.left
    if shared.decided < len(log):
        yield decides(shared, rules)
    if world.uses_rows and shared.written < shared.decided:
        yield Change("the order-writer goes on", shared._replace(written=shared.written + 1))
    if left.restores and shared.written > 1:
        yield Change("an older Postgres is restored", shared._replace(written=1, left=spent(left, "restores")))
    for body in sorted(set(shared.in_flight)):
        rest = list(shared.in_flight)
        rest.remove(body)
        landed = shared._replace(log=(*log, ENTRY[body]), in_flight=tuple(rest))
        yield Change(f"{ENTRY[body]} lands at {len(log)}, nobody hears of it", landed)
        yield Change(f"{ENTRY[body]} is lost on its way", shared._replace(in_flight=tuple(rest)))
    for what, entry in _appended(left):
        yield Change(f"{entry} lands at {len(log)}", shared._replace(log=(*log, entry), left=spent(left, what)))
    if left.ends and fold(log[: shared.decided], rules.fold).held:
        entry = Entry.K_RELEASED
        yield Change(f"{entry} lands at {len(log)}", shared._replace(log=(*log, entry), left=spent(left, "ends")))


def _appended(left: Left) -> Iterator[tuple[str, Entry]]:
    for what, entry in (
        ("releases", Entry.L_RELEASED),
        ("rivals", Entry.M),
        ("retirements", Entry.PRODUCT_RETIRED),
    ):
        if getattr(left, what):
            yield what, entry


def decides(shared: Shared, rules: Rules) -> Change:
    """The fold answers the next request."""
    upto = shared.decided + 1
    log = shared.log[:upto]
    decision = fold(log, rules.fold).decisions[-1]
    broken = None
    if log[-1] in BODY and decision is Decision.RESERVED:
        broken = claims.reserved_once(log, rules)
    return Change(f"{log[-1]} at {upto - 1} is decided: {decision}", shared._replace(decided=upto), broken)


def rejections_flood(shared: Shared) -> Change:
    """So many rejections of others that the fold forgets K's. (Nobody waits for so long: the walk sees to that.)"""
    log = (*shared.log, Entry.MANY_REJECTIONS)
    return Change("250,000 rejections land", shared._replace(log=log, left=spent(shared.left, "forgettings")))


def tail_lost(shared: Shared) -> Change:
    """The broker loses what was not answered yet; acknowledgements of it may still be on their way."""
    left = spent(shared.left, "tail_losses")
    return Change("the broker loses the unanswered tail", shared._replace(log=shared.log[: shared.decided], left=left))


def after_tail_lost(gateway: Gateway, log: Log, rules: Rules) -> Gateway:
    """What is claimed for those who wait: they asked for something that may be gone."""
    send, get = gateway.send, gateway.get
    if send is not None:
        send = send._replace(stood=send.stood and remembered(log, rules))
    if get is not None:
        get = get._replace(stood=get.stood and stands(log, rules))
    return gateway._replace(send=send, get=get)


def waits_for_nothing(gateway: Gateway) -> bool:
    """No send and no read waits here."""
    return gateway.send is None and gateway.get is None and not gateway.disputing
