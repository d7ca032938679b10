"""What must be true of every answer at the door, whatever was killed. Pure: each rule yields what contradicts it.

S8 to S10 are those of `replay`; these are what only a driver with several gateways, and a look into Redis, can tell.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

from replay.evidence import Violation
from replay.rules.s11_limiter import Span
from tests.chaos.door import s11
from tests.chaos.door.account import UNANSWERED, Account, Send, overlap
from tests.chaos.door.s11 import purchase_of

DEADLINE_MS = 10_000.0  # of a claim in flight
BELIEVED_AFTER_MS = 10_000.0  # no forgetful memory before this
NOTICED_MS = 2_500.0  # a gateway asks each second
KNOWN_MS = 1_000.0  # "another may lag by up to a second"
TOLD_MS = 3_000.0  # a gateway that could not tell Redis for so long says so
CLOCK_MS = 100.0  # the broker's clock beside the machine's, and a record on its way
RETRY = frozenset({"overloaded", "outcome-unknown", "unavailable", "internal-error"})


class DoorRule(NamedTuple):
    """`name` is what it says in a verdict."""

    name: str
    check: Callable[[Account], Iterator[Violation]]


def first_answer(account: Account) -> Iterator[Violation]:
    """A repeat of what was accepted gets the first answer: the same purchase, and the same bytes of 202."""
    for sends, first, repeats in _repeats(account):
        bodies = {send.raw for send in sends if send.status == 202}
        if len(bodies) > 1:
            yield _at(first, f"got {len(bodies)} different 202")
        for send in repeats:
            if send.body == first.body and (what := _no_first_answer(account, first, send)):
                yield _at(send, f"accepted before as {purchase_of(first)}, {what}")


def _no_first_answer(account: Account, first: Send, send: Send) -> str:
    if send.status == UNANSWERED or send.kind in RETRY:
        return ""
    if send.accepted:
        return "" if purchase_of(send) == purchase_of(first) else f"is {purchase_of(send)} now"
    if send.kind == "in-flight":  # the rule about twins
        return ""
    if send.kind == "rate-limited":  # allowed where Redis could not tell that it is a repeat
        known = account.vouched(send) and not _untold(account, first, send)
        return "was told 429, although a repeat costs nothing" if known else ""
    return f"was told {send.status} {send.kind}"


def one_body(account: Account) -> Iterator[Violation]:
    """Of two bodies under one key one is accepted and the other told 422, unless at its first time nobody could tell.

    Who could not tell leaves it to the log, which knows one purchase whatever its body; later on either may be known.
    """
    for sends, first, _ in _repeats(account):
        others = [send for send in sends if send.accepted and send.body != first.body]
        if not others:
            continue
        other = min(others, key=lambda send: send.answered_ms)
        if account.forgotten(first.sent_ms, other.answered_ms) or not account.vouched(other):
            continue
        at_once = other.sent_ms <= first.answered_ms
        if account.vouched(first) and account.by_redis(first) if at_once else not _untold(account, first, other):
            yield _at(other, f"was accepted with {other.body}, and with {first.body} at {first.sent_ms:.0f} ms")


def twins(account: Account) -> Iterator[Violation]:
    """`in-flight` is told only beside another send with this key, or until the deadline of one that claimed it."""
    for sends in account.by_key.values():
        for send in sends:
            if send.kind == "in-flight" and not any(_keeps_waiting(account, other, send) for other in sends):
                yield _at(send, "was told that it is in flight, and nothing was")


def _keeps_waiting(account: Account, other: Send, send: Send) -> bool:
    if other is send or other.sent_ms > send.answered_ms:
        return False
    if overlap(other.span, send.span):
        return True
    claimed_ms = s11.spending(account, other).to_ms
    return _may_have_claimed(account, other) and claimed_ms >= send.sent_ms - DEADLINE_MS - CLOCK_MS


def _may_have_claimed(account: Account, send: Send) -> bool:
    """A call to Redis may have claimed although it was given up, and the gateway said no by itself."""
    given_up = send.status == s11.LIMITED and not account.by_redis(send)
    return send.accepted or send.status in {UNANSWERED, 503} or given_up


def sold_out_is_true(account: Account) -> Iterator[Violation]:
    """Nobody is told sold-out while units are available, for longer than a gateway may lag."""
    for send in account.sends:
        if send.kind == "sold-out" and (least := stood(account, send)) > 0:
            yield _at(send, f"was told sold-out, when {least} units of {send.product_id} or more had been there")


def stood(account: Account, send: Send) -> int:
    """The fewest units that were available from so long before a send that each gateway knew, until its answer."""
    stock = account.stock.get(send.product_id, [])
    since = bisect_right(stock, send.sent_ms - KNOWN_MS - CLOCK_MS, key=itemgetter(0))
    until = bisect_right(stock, send.answered_ms + CLOCK_MS, key=itemgetter(0))
    return min((available for _, available in stock[max(0, since - 1) : until]), default=0) if since else 0


def doubt_refuses_nobody(account: Account) -> Iterator[Violation]:
    """While Redis cannot vouch, the door says neither sold-out nor that it is not open."""
    for send in account.sends:
        if send.kind in {"sold-out", "not-open"} and account.doubted(send):
            yield _at(send, f"was told {send.kind} by a gateway that does not believe Redis")


def claims_are_kept(account: Account) -> Iterator[Violation]:
    """What was accepted is known to Redis at the end, unless it forgot, or whoever knew died before it could tell."""
    for _, first, _ in _repeats(account):
        if first.replayed or account.forgotten(first.sent_ms, account.settled_ms):
            continue
        claimed = account.by_redis(first) and account.vouched(first)
        told = account.lives(first.gateway, first.sent_ms, account.settled_ms)
        state = account.claims.get(purchase_of(first), "")
        if not state and (claimed or told):
            yield _at(first, f"{purchase_of(first)} has no claim in Redis")
        elif told and not state.startswith("a "):
            yield _at(first, f"the claim of {purchase_of(first)} is {state[:1] or 'gone'}, not accepted")


def forgetful_is_not_believed(account: Account) -> Iterator[Violation]:
    """No gateway believes a Redis that forgot something, before all that it may have forgotten has a row."""
    gone = [*account.memory.lost, *(Span(one.from_ms, one.to_ms) for one in account.memory.evicted)]
    for gateway, states in account.states.items():
        for state in states:
            for span in gone:
                wrong = Span(span.to_ms + NOTICED_MS, span.from_ms + BELIEVED_AFTER_MS)
                if state.vouched and overlap(state.certain, wrong):
                    yield Violation(gateway, f"believed Redis at {wrong.from_ms:.0f} ms, which forgot before")
                    break


def nothing_is_denied(account: Account) -> Iterator[Violation]:
    """Nobody hears that there is no such purchase after it was accepted."""
    firsts = {purchase_of(first): first for _, first, _ in _repeats(account)}
    for look in account.looks:
        first = firsts.get(look.purchase_id)
        if look.status != 404 or first is None or look.sent_ms < first.answered_ms:
            continue
        if account.by_redis(first) or look.sent_ms > first.answered_ms + KNOWN_MS + TOLD_MS:
            yield Violation(look.gateway, f"{look.purchase_id} was denied at {look.sent_ms:.0f} ms")


def nobody_above_the_limits(account: Account) -> Iterator[Violation]:
    """S11, first half."""
    yield from (violation for _, violation in s11.overdrawn(account))


def nobody_polite_is_limited(account: Account) -> Iterator[Violation]:
    """S11, second half."""
    yield from s11.impolite(account)


def _repeats(account: Account) -> Iterator[tuple[list[Send], Send, list[Send]]]:
    """Of each accepted key all its sends, the first that was told so, and those that began afterwards.

    Where two bodies were accepted because nobody could tell, the first is the one that was bought.
    """
    for sends in account.by_key.values():
        accepted = [send for send in sends if send.accepted]
        if accepted:
            bought = account.bought.get(purchase_of(accepted[0]))
            first = min([s for s in accepted if s.body == bought] or accepted, key=lambda send: send.answered_ms)
            yield sends, first, [send for send in sends if send.sent_ms > first.answered_ms]


def sent_again(account: Account) -> Iterator[tuple[Send, Send]]:
    """Each repeat of an accepted key, after the send that was accepted first."""
    for _, first, repeats in _repeats(account):
        yield from ((first, again) for again in repeats)


def _untold(account: Account, first: Send, send: Send) -> bool:
    """Whether Redis may not know: it was away when this was accepted, or has forgotten, or nobody could tell it yet."""
    if account.forgotten(first.sent_ms, send.answered_ms):
        return True
    soon = send.sent_ms < first.answered_ms + TOLD_MS
    return not account.by_redis(first) and (soon or not account.lives(first.gateway, first.sent_ms, send.sent_ms))


def _at(send: Send, what: str) -> Violation:
    return Violation(f"{send.key} at {send.gateway}, {send.sent_ms:.0f} ms", what)


RULES = (
    DoorRule("S9 first answer", first_answer),
    DoorRule("S9 one body", one_body),
    DoorRule("S9 twins", twins),
    DoorRule("S9 claims kept", claims_are_kept),
    DoorRule("S8 sold-out is true", sold_out_is_true),
    DoorRule("S8 doubt refuses nobody", doubt_refuses_nobody),
    DoorRule("S8 nothing is denied", nothing_is_denied),
    DoorRule("S8 no forgetful Redis is believed", forgetful_is_not_believed),
    DoorRule("S11 nobody above the limits", nobody_above_the_limits),
    DoorRule("S11 nobody polite is limited", nobody_polite_is_limited),
)
