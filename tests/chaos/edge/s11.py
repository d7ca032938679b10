"""S11 at the edge: which counter every send was counted by, and what each counter must and cannot have allowed.

Pure. Redis counts for all gateways; a gateway without it counts for itself, by its share, anew in each process. A send
of which nobody can say who counted it is left out; how many that are is told.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from replay.evidence import Violation
from replay.rules.s11_limiter import Allowance, Span, allowances
from tests.chaos.edge.account import UNANSWERED, Account, Evicted, Send, overlap
from tests.chaos.edge.limits import Bound, had_room, share, too_many

LIMITED = 429
REFUSED = frozenset({"sold-out", "not-open", "unknown-product"})
LATE_MS = 15_000.0  # what was on its way to a gateway or to Redis is not looked at any more after this
REDIS = ("redis", 0)
Where = tuple[str, int]  # REDIS, or a gateway and its process


class Use(NamedTuple):
    """A purchase or a refusal that was let through once: by whom, and where it was counted, if that is certain."""

    buyer: str
    address: str
    span: Span
    where: Where | None

    def who(self, scope: str) -> str:
        """Under whose name a policy of this scope counts it."""
        return self.buyer if scope == "user" else self.address


def policies(line: str) -> list[Allowance]:
    """Those of the setting."""
    return list(allowances(line))


def uses(account: Account) -> Iterator[Use]:
    """What was certainly let through: each accepted key once, by its first answer at the latest; each `sold-out`.

    Repeats that joined one which was refused at the gate share its use.
    """
    for sends in account.by_key.values():
        accepted = [send for send in sends if send.accepted]
        if accepted:
            end = min(send.answered_ms for send in accepted)
            may_be = [send for send in sends if _may_have_spent(send) and send.sent_ms <= end]
            yield _use(account, may_be, end)
        for joined in _at_the_gate(sends):
            yield _use(account, joined, max(send.answered_ms for send in joined if send.kind in REFUSED))


def _use(account: Account, sends: Sequence[Send], end: float) -> Use:
    places = {_where(account, send) for send in sends}
    where = places.pop() if len(places) == 1 else None
    return Use(sends[0].buyer, sends[0].address, Span(min(send.sent_ms for send in sends), end), where)


def _at_the_gate(sends: Iterable[Send]) -> list[list[Send]]:
    """What was refused there; those together that may have joined each other, or one whose answer nobody heard."""
    groups: list[list[Send]] = []
    under_way: dict[str, tuple[float, list[Send]]] = {}
    for send in sends:
        if send.kind not in REFUSED and send.status != UNANSWERED:
            continue
        end, group = under_way.get(send.gateway, (-inf, []))
        if send.sent_ms > end:
            groups.append(group := [])
        group.append(send)
        under_way[send.gateway] = max(end, _judged_by(send)), group
    return [group for group in groups if any(send.kind in REFUSED for send in group)]


def _judged_by(send: Send) -> float:
    """Nobody told when a send without an answer was judged; but it was within LATE_MS, or never."""
    return send.sent_ms + LATE_MS if send.status == UNANSWERED else send.answered_ms


def _may_have_spent(send: Send) -> bool:
    return send.accepted or send.status in {UNANSWERED, 503}


def _where(account: Account, send: Send) -> Where | None:
    send = send._replace(answered_ms=_judged_by(send))
    if account.by_redis(send):
        return REDIS
    process = account.by_itself(send)
    return (send.gateway, process) if process else None


def overdrawn(
    account: Account, change: Callable[[Allowance], Allowance] = lambda policy: policy
) -> Iterator[tuple[Allowance, Violation]]:
    """Each counter that let through what it cannot have; `change` makes other policies of those in force."""
    counted: defaultdict[tuple[Where, str, str], list[Span]] = defaultdict(list)
    for use in uses(account):
        if use.where is not None:
            for scope in ("user", "address"):
                counted[use.where, scope, use.who(scope)].append(use.span)
    for policy in policies(account.limits):
        for (where, scope, who), spans in counted.items():
            if scope != policy.scope:
                continue
            own = change(policy if where == REDIS else share(policy, account.gateways))
            name = account.names.get(who) if scope == "user" else who
            late = too_many(Bound(own, spans, lost(account, policy, name) if where == REDIS else ()))
            if late is not None:
                place = "Redis" if where == REDIS else f"{where[0]} (process {where[1]})"
                what = f"{place} let {len(spans)} through for {who}, too many of {own} by {late.to_ms:.0f} ms"
                yield policy, Violation(f"{scope} {who}", what)


def lost(account: Account, policy: Allowance, who: str | None) -> list[Span]:
    """When the counter of this caller was emptied in Redis; of one whose name there is not known, whenever any was."""
    gone = list(account.memory.lost)
    return gone + [Span(e.from_ms, e.to_ms) for e in account.memory.evicted if _is_counter(e, policy, who)]


def _is_counter(evicted: Evicted, policy: Allowance, who: str | None) -> bool:
    parts = evicted.key.split(":", 6)  # {rl}:scope:algorithm:quota:window:burst:name
    return len(parts) == 7 and parts[1] == policy.scope and who in {None, parts[6]}


def impolite(account: Account, change: Callable[[Allowance], Allowance] = lambda policy: policy) -> Iterator[Violation]:
    """Each 429 to a caller who had room in every policy, of the counter that must have been asked."""
    spent: defaultdict[tuple[str, str], list[tuple[str, Span]]] = defaultdict(list)
    for send in account.sends:
        if send.status != LIMITED:
            for name in (("user", send.buyer), ("address", send.address)):
                spent[name].append((send.gateway, spending(account, send)))
    for send in account.sends:
        where = _where(account, send) if send.status == LIMITED else None
        if where is None:
            continue
        callers = {"user": send.buyer, "address": send.address}
        if all(
            had_room(_bound(account, change(policy), where, spent[policy.scope, callers[policy.scope]]), send.span)
            for policy in policies(account.limits)
        ):
            who = "Redis" if where == REDIS else send.gateway
            yield Violation(f"{send.gateway} at {send.sent_ms:.0f} ms", f"{send.buyer} had room, and {who} told it 429")


def _bound(account: Account, policy: Allowance, where: Where, spent: Iterable[tuple[str, Span]]) -> Bound:
    if where == REDIS:
        return Bound(policy, [span for _, span in spent])
    return Bound(share(policy, account.gateways), [span for gateway, span in spent if gateway == where[0]])


def spending(account: Account, send: Send) -> Span:
    """When a send may have spent something: what Redis did not answer in time it may have done when it was back."""
    end = _judged_by(send)
    for state in account.during(send.gateway, send.sent_ms, send.answered_ms):
        if state.local:
            end = max(end, _back(account, send.gateway, state.to_ms))
    for away in account.memory.away:
        if overlap(away, send.span):
            end = max(end, away.to_ms + 1_000)
    return Span(send.sent_ms, min(end, send.sent_ms + 2 * LATE_MS))


def _back(account: Account, gateway: str, at_ms: float) -> float:
    """When Redis answered this gateway again, or it died."""
    for state in account.states[gateway]:
        if state.from_ms >= at_ms and not state.local:
            return state.certain.from_ms
    return inf
