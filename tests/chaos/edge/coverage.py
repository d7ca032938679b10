"""Whether a run at the edge tested what it claims: every count that must not be small, and limits that were felt.

Pure. A rule that found nothing wrong proves nothing where there was nothing to be found.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import inf
from typing import NamedTuple

from replay.rules.s11_limiter import Allowance, Span
from tests.chaos.edge import refusals, s11
from tests.chaos.edge.account import UNANSWERED, Account, Send, overlap
from tests.chaos.edge.limits import scaled
from tests.chaos.edge.rules import sent_again, stood

TIGHTER, WIDER = 0.7, 1.5


class Needed(NamedTuple):
    """`least`: in a minute of sale, below which the run is worth nothing."""

    what: str
    least: float
    count: Callable[[Account], int]


def _sends(account: Account, wanted: Callable[[Send], bool]) -> int:
    return sum(wanted(send) for send in account.sends)


def _elsewhere(account: Account) -> int:
    """Repeats at another gateway than the one that accepted."""
    return sum(again.gateway != first.gateway for first, again in sent_again(account))


def _after_sold_out(account: Account) -> int:
    """First answers given while nothing was left."""
    return sum(
        again.accepted and _available(account, again) == 0 and again.body == first.body
        for first, again in sent_again(account)
    )


def _available(account: Account, send: Send) -> int:
    before = [left for left in account.stock.get(send.product_id, []) if left.appended_ms <= send.sent_ms]
    return before[-1].available if before else 0


def _twins(account: Account) -> int:
    """Sends of one key and body under way at once, at two gateways."""
    return sum(
        one.gateway != other.gateway and one.body == other.body and overlap(one.span, other.span)
        for sends in account.by_key.values()
        for one, other in pairwise(sends)
    )


def _cut_and_logged(account: Account) -> int:
    """Connections that were cut, and whose purchase stood in the log before its buyer asked at another gateway."""
    return sum(
        first.status == UNANSWERED and min(account.fate(key).appended_ms, default=inf) < again.sent_ms
        for key, sends in account.by_key.items()
        for first, again in pairwise(sends)
        if first.gateway != again.gateway
    )


def _spared(account: Account) -> int:
    """Sends that a view which was not fresh could neither refuse nor let through."""
    views = [Span(hurt.from_ms, hurt.to_ms) for hurt in account.hurt if hurt.what == "views"]
    return _sends(account, lambda send: send.kind == "overloaded" and any(overlap(send.span, one) for one in views))


def _flips(account: Account) -> int:
    """How often a product that was sold out was not any more."""
    return sum(
        before.available == 0 and after.available > 0
        for stock in account.stock.values()
        for before, after in pairwise(stock)
    )


def _asked_of_stock(account: Account) -> int:
    """Sends that would have been wrong to call sold-out."""
    return sum(not send.replayed and send.accepted and stood(account, send) > 0 for send in account.sends)


def _counted_by_redis(account: Account) -> int:
    return sum(use.where == s11.REDIS for use in s11.uses(account))


def _counted_by_gateways(account: Account) -> int:
    return sum(use.where not in {None, s11.REDIS} for use in s11.uses(account))


def _polite_and_felt(account: Account) -> int:
    """What would have been wrong to say if the limits were wider: so many refusals were looked at and found right."""
    return sum(1 for _ in s11.impolite(account, partial(scaled, by=WIDER)))


NEEDED = (
    Needed("429s", 800, lambda a: _sends(a, lambda send: send.status == s11.LIMITED)),
    Needed("sold-out at the gate", 150, lambda a: _sends(a, lambda send: send.kind == "sold-out")),
    Needed("accepted", 300, lambda a: _sends(a, lambda send: send.accepted and not send.replayed)),
    Needed("replayed", 300, lambda a: _sends(a, lambda send: send.replayed)),
    Needed("repeats at another gateway", 200, _elsewhere),
    Needed("first answers after sold-out", 80, _after_sold_out),
    Needed("twins at two gateways", 40, _twins),
    Needed("connections cut after the log had it", 10, _cut_and_logged),
    Needed("another body: 422", 60, lambda a: _sends(a, lambda send: send.kind == "idempotency-key-reused")),
    Needed("in flight: 409", 2, lambda a: _sends(a, lambda send: send.kind == "in-flight")),
    Needed("sends without an answer", 15, lambda a: _sends(a, lambda send: send.status == UNANSWERED)),
    Needed("sold-out ended", 15, _flips),
    Needed("accepted of units that were there all the time", 60, _asked_of_stock),
    Needed("told to come again by a view that was not fresh", 40, _spared),
    Needed("looks that showed a version", 200, lambda a: sum(look.version > 0 for look in a.looks)),
    Needed("uses counted by Redis", 500, _counted_by_redis),
    Needed("uses counted by gateways alone", 30, _counted_by_gateways),
    Needed("429s that were right, and not under wider limits", 200, _polite_and_felt),
    Needed(f"{refusals.GATE} {refusals.HURT}", 40, lambda a: refusals.counts(a)[f"{refusals.GATE} {refusals.HURT}"]),
)


def counts(account: Account) -> Counter[str]:
    """How often each happened in a round, and each policy would have been overdrawn had it been tighter."""
    found = Counter({needed.what: needed.count(account) for needed in NEEDED})
    found |= refusals.counts(account)
    found["uses of which nobody knows who counted them"] = sum(use.where is None for use in s11.uses(account))
    for policy, _ in s11.overdrawn(account, partial(scaled, by=TIGHTER)):
        found[_felt(policy)] += 1
    return found


def _felt(policy: Allowance) -> str:
    kind = "sliding window" if policy.sliding else "token bucket"
    return f"callers at their {policy.scope} {kind}"


def vacuous(found: Mapping[str, int], limits: str, minutes: float, missed: Sequence[str]) -> Iterator[str]:
    """What makes this run worth nothing, in sentences. `missed`: faults that struck nothing in all of it."""
    for needed in NEEDED:
        least = needed.least * minutes
        if found.get(needed.what, 0) < least:
            yield f"vacuous: {found.get(needed.what, 0)} {needed.what}, at least {least:.0f} are needed"
    for policy in s11.policies(limits):
        if not found.get(_felt(policy)):
            yield f"vacuous: no {_felt(policy)}, so nobody knows whether it is kept"
    yield from (f"vacuous: {fault} struck nothing" for fault in missed)
