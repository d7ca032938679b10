"""What must be true of every answer at the edge, whatever was killed or cut. Pure: a rule yields what contradicts it.

S8 to S10 are those of `replay`; these are what only a driver with several gateways can tell, who knows each purchase by
its id, told or not. Redis is no excuse for anything but limits. KNOWN_MS and CLOCK_MS are all that is allowed for.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from math import inf
from operator import attrgetter
from typing import NamedTuple

from replay.evidence import Violation
from tests.chaos.edge import s11
from tests.chaos.edge.account import UNANSWERED, Account, Fate, Look, Send, overlap

KNOWN_MS = 1_000.0  # "another may lag by up to a second": by then a decision or an order event is known everywhere
CLOCK_MS = 10.0  # stamps are whole ms of the machine's other clock
STALE_APPENDS_PER_S = 200  # per partition and gateway, while its view is not fresh
RETRY = frozenset({"overloaded", "outcome-unknown", "unavailable", "internal-error"})
AT_THE_GATE = s11.REFUSED
OUTCOMES = {0: ("pending",), 1: ("rejected",), 2: ("reserved",)}
TOLD = {201: "reserved", 409: "rejected"}
LATER = ("confirmed", "released")  # each version from 3 on


class DoorRule(NamedTuple):
    """`name` is what it says in a verdict."""

    name: str
    check: Callable[[Account], Iterator[Violation]]


# ---- S9: one key and product, one purchase


def first_answer(account: Account) -> Iterator[Violation]:
    """A repeat of what was accepted gets the first answer: the same purchase, and the same bytes of 202.

    It may be told to come again, or be limited by a gateway that cannot know it yet; whether that is so, other rules
    say. Another body's 202 has these bytes too: they are a function of the purchase alone.
    """
    for key, sends in account.by_key.items():
        for send in sends:
            if send.accepted and send.purchase != account.ids[key]:
                yield _at(send, f"is {send.purchase}, not {account.ids[key]}")
        if len(bodies := {send.raw for send in sends if send.status == 202}) > 1:
            yield _at(sends[0], f"got {len(bodies)} different 202")
    for first, send in sent_again(account):
        others = {*RETRY, "rate-limited", "in-flight"}
        if send.body == first.body and not (send.accepted or send.status == UNANSWERED or send.kind in others):
            yield _at(send, f"accepted before as {first.purchase}, was told {send.status} {send.kind}")


def repeats_are_free(account: Account) -> Iterator[Violation]:
    """No gateway limits a purchase that it knows, whatever body it is sent with."""
    for sends in account.by_key.values():
        for send in sends:
            if send.kind == "rate-limited" and (_accepted_here(account, send) or _decision_known(account, send)):
                yield _at(send, "was told 429, although a repeat costs nothing")


def one_body(account: Account) -> Iterator[Violation]:
    """Another body than the decided one is not accepted by a gateway that knows better."""
    for key, sends in account.by_key.items():
        bought = account.fate(key).body
        for send in sends:
            if not (send.accepted and bought and send.body != bought):
                continue
            told = send.status != 202  # it names an outcome, so the gateway knew it
            if told or _decision_known(account, send) or _accepted_here(account, send, bought):
                yield _at(send, f"was accepted with {send.body}, and {bought} is what was decided")


def decided_first(account: Account) -> Iterator[Violation]:
    """422 is said against a decision only, and never to the body that it is about."""
    for key, sends in account.by_key.items():
        fate = account.fate(key)
        for send in sends:
            if send.kind != "idempotency-key-reused":
                continue
            if send.body == fate.body:
                yield _at(send, "was told 422 with the body that was decided")
            elif fate.decided_ms is None or fate.decided_ms > send.answered_ms + CLOCK_MS:
                yield _at(send, "was told 422 before anything was decided")


def in_flight(account: Account) -> Iterator[Violation]:
    """409 `in-flight` is for another body than one that this gateway has before it, and only until that is decided."""
    for key, sends in account.by_key.items():
        decided_ms = account.fate(key).decided_ms
        for send in sends:
            if send.kind != "in-flight":
                continue
            if not any(_undecided_before(other, send) for other in sends):
                yield _at(send, "was told that it is in flight, and no other body was at this gateway")
            elif decided_ms is not None and decided_ms + KNOWN_MS < send.answered_ms:
                yield _at(send, f"was told that it is in flight, and was decided at {decided_ms:.0f} ms")


def _undecided_before(other: Send, send: Send) -> bool:
    if other.body == send.body or other.gateway != send.gateway or other.sent_ms > send.answered_ms:
        return False
    return overlap(other.span, send.span) or other.accepted or other.unsettled


# ---- S8: what is said of the log is true


def accepted_is_logged(account: Account) -> Iterator[Violation]:
    """Whatever was accepted stood in the log when it was told so, and is decided as was told, if it was."""
    for key, sends in account.by_key.items():
        fate = account.fate(key)
        for send in filter(lambda send: send.accepted, sends):
            if min(fate.appended_ms, default=inf) > send.answered_ms + CLOCK_MS:
                yield _at(send, f"was accepted, and {account.ids[key]} was not in the log")
            elif fate.outcome != TOLD.get(send.status, fate.outcome):
                yield _at(send, f"was told {send.status}, and {account.ids[key]} is {fate.outcome}")
        if fate.appended_ms and not fate.outcome:
            yield _at(sends[0], f"{account.ids[key]} is in the log, and was never decided")


def logged_as_told(account: Account) -> Iterator[Violation]:
    """A refused send is not logged, and one process of a gateway logs a purchase once, however often it is sent.

    It logs it again only after an append whose end it does not know.
    """
    for key, sends in account.by_key.items():
        times, most = len(account.fate(key).appended_ms), _appends_max(account, sends)
        if times > most:
            yield _at(sends[0], f"{account.ids[key]} was logged {times} times, by its answers at most {most}")


def _appends_max(account: Account, sends: list[Send]) -> int:
    by: set[object] = set()
    unknown = 0
    for send in sends:
        if send.accepted and not send.replayed:
            by |= account.processes(send) or {send}
        # After a wait the answer may be 422: it was appended, and the fold ignored it.
        unknown += send.unsettled or (send.waited and send.kind == "idempotency-key-reused")
    return len(by) + unknown


def logged_is_not_refused(account: Account) -> Iterator[Violation]:
    """The gate turns nothing away that stood in the log when it was sent, whoever logged it and whoever died since."""
    for key, sends in account.by_key.items():
        readable_ms = account.fate(key).readable_ms
        for send in sends:
            if send.kind in AT_THE_GATE and readable_ms + CLOCK_MS < send.sent_ms:
                yield _at(send, f"was told {send.kind}, and was in the log at {readable_ms:.0f} ms")


def gate_says_what_is(account: Account) -> Iterator[Violation]:
    """Nobody hears "sold out" unless, in the order of the log, nothing was left at some instant of its send.

    A view that is fresh for the arrival has applied every request that stood in the log then, and perhaps some that
    came before the answer. So it shows what was available behind one of these, and the least of them must be zero.
    Decisions may be as late as they like: what counts is when their requests could be read. Products are on sale all
    the time, so the gate has nothing else to say.
    """
    for send in account.sends:
        if send.kind == "sold-out" and (least := stood(account, send)) > 0:
            yield _at(send, f"was told sold-out, when {least} units of {send.product_id} or more were there")
        if send.kind in AT_THE_GATE - {"sold-out"} and _listed_ms(account, send) + CLOCK_MS < send.sent_ms:
            yield _at(send, f"was told {send.kind} of {send.product_id}, which was on sale")


def stood(account: Account, send: Send) -> int:
    """The fewest units that were available behind the last request before a send, or any until its answer."""
    stock = account.stock.get(send.product_id, [])
    since = bisect_right(stock, send.sent_ms - CLOCK_MS, key=attrgetter("readable_ms"))
    until = bisect_right(stock, send.answered_ms + CLOCK_MS, key=attrgetter("appended_ms"))
    return min((left.available for left in stock[max(0, since - 1) : until]), default=0) if since else 0


def _listed_ms(account: Account, send: Send) -> float:
    stock = account.stock.get(send.product_id)
    return stock[0].readable_ms if stock else inf


def log_is_spared(account: Account) -> Iterator[Violation]:
    """Of a product that never had a unit a gateway logs no more than what a view that is not fresh lets through."""
    never = {product for product, stock in account.stock.items() if not any(left.available for left in stock)}
    logged: dict[tuple[str, str], list[float]] = {}
    for key, sends in account.by_key.items():
        if sends[0].product_id in never and len(at := {send.gateway for send in sends}) == 1:
            logged.setdefault((at.pop(), sends[0].product_id), []).extend(account.fate(key).appended_ms)
    for (gateway, product), times in logged.items():
        if (most := _above(sorted(times))) > 0:
            yield Violation(gateway, f"logged {most:.0f} requests for {product} more than the bound, which had no unit")


def _above(times: list[float]) -> float:
    """By how much the fullest span exceeds the bound; it may touch two seconds beside those that lie in it."""
    low, most = inf, -inf
    for number, at in enumerate(times):
        allowed = at / 1_000 * STALE_APPENDS_PER_S
        low = min(low, number - allowed)
        most = max(most, number + 1 - allowed - low - 2 * STALE_APPENDS_PER_S)
    return most


def nothing_is_denied(account: Account) -> Iterator[Violation]:
    """Nobody hears that there is no such purchase after it was accepted, at any gateway, from that instant on."""
    accepted: dict[str, float] = {}
    for send in account.sends:
        if send.accepted:
            accepted[send.purchase] = min(send.answered_ms, accepted.get(send.purchase, inf))
    for look in account.looks:
        if look.status == 404 and accepted.get(look.purchase_id, inf) < look.sent_ms:
            yield Violation(look.gateway, f"{look.purchase_id} was denied at {look.sent_ms:.0f} ms")


# ---- S10: forward, everywhere


def one_version_everywhere(account: Account) -> Iterator[Violation]:
    """A version means one status, at each gateway and in the row; none goes back, and no other lags for a second."""
    for purchase_id, seen in _seen(account).items():
        versions: dict[int, str] = {}
        for look in seen:
            known = versions.setdefault(look.version, look.state)
            if look.state not in OUTCOMES.get(look.version, LATER) or look.state != known:
                yield Violation(look.gateway, f"{purchase_id} is {look.state} at {look.version}, elsewhere {known}")
        for look in seen:
            if (older := _fell(account, seen, look)) is not None:
                yield Violation(look.gateway, f"{purchase_id} was {older.version}, then {look.version}")
                break
        if {1, 2} <= versions.keys():
            yield Violation(seen[0].gateway, f"{purchase_id} is rejected, and reserved")


def _seen(account: Account) -> dict[str, list[Look]]:
    """What was shown of each purchase, by a look, a 201, or the row in the end, in the order in which it was asked."""
    found: dict[str, list[Look]] = {}
    for look in account.looks:
        if look.state:
            found.setdefault(look.purchase_id, []).append(look)
    for send in account.sends:
        if send.status == 201 and send.body == account.fate(send.key).body:
            shown = send.content
            look = Look(
                send.purchase, send.gateway, send.sent_ms, send.answered_ms, 200, shown["version"], shown["status"]
            )
            found.setdefault(send.purchase, []).append(look)
    for purchase_id, looks in found.items():
        looks.sort(key=lambda look: look.sent_ms)
        if (fate := account.fates.get(purchase_id)) and fate.status:
            end = looks[-1].answered_ms + 2 * KNOWN_MS
            looks.append(Look(purchase_id, "the row", end, end, 200, fate.version, fate.status))
    return found


def _fell(account: Account, seen: list[Look], look: Look) -> Look | None:
    """What was shown before, by the same process at once or by another a second ago, and was newer."""
    for older in seen:
        if older.version > look.version:
            process = account.process(older)
            same = older.gateway == look.gateway and process and process == account.process(look)
            if older.answered_ms + (0.0 if same else KNOWN_MS) < look.sent_ms:
                return older
    return None


# ---- what a gateway knew


def sent_again(account: Account) -> Iterator[tuple[Send, Send]]:
    """Each send that began after the purchase had been accepted with the body that counts, after that first answer."""
    for key, sends in account.by_key.items():
        if (first := _first(sends, account.fate(key))) is not None:
            yield from ((first, send) for send in sends if send.sent_ms > first.answered_ms)


def _first(sends: list[Send], fate: Fate) -> Send | None:
    accepted = [send for send in sends if send.accepted and send.body == (fate.body or send.body)]
    return min(accepted, key=lambda send: send.answered_ms, default=None)


def _accepted_here(account: Account, send: Send, body: str = "") -> bool:
    """Whether the very process that judged this had accepted the purchase before, with this body if one is named."""
    process = account.process(send)
    return process != 0 and any(
        other.accepted
        and other.gateway == send.gateway
        and other.answered_ms < send.sent_ms
        and body in {"", other.body}
        and account.process(other) == process
        for other in account.by_key[send.key]
    )


def _decision_known(account: Account, send: Send) -> bool:
    """Whether the process that judged this has been there since before the decision, and had a second to hear it.

    A younger one asks the row, which may be late: then the purchase goes to the log, and the fold judges it.
    """
    process, decided_ms = account.process(send), account.fate(send.key).decided_ms
    if not process or decided_ms is None:
        return False
    return account.since(process) < decided_ms and decided_ms + KNOWN_MS < send.sent_ms


def _at(send: Send, what: str) -> Violation:
    return Violation(f"{send.key} at {send.gateway}, {send.sent_ms:.0f} ms", what)


def nobody_above_the_limits(account: Account) -> Iterator[Violation]:
    """S11, first half."""
    yield from (violation for _, violation in s11.overdrawn(account))


BY_LOG = (
    DoorRule("S9 first answer", first_answer),
    DoorRule("S9 repeats are free", repeats_are_free),
    DoorRule("S9 one body", one_body),
    DoorRule("S9 422 is decided", decided_first),
    DoorRule("S9 in flight", in_flight),
    DoorRule("S8 accepted is logged", accepted_is_logged),
    DoorRule("S8 logged as told", logged_as_told),
    DoorRule("S8 logged is not refused", logged_is_not_refused),
    DoorRule("S8 the gate says what is", gate_says_what_is),
    DoorRule("S8 the log is spared", log_is_spared),
    DoorRule("S8 nothing is denied", nothing_is_denied),
    DoorRule("S10 one version everywhere", one_version_everywhere),
)
RULES = (
    *BY_LOG,
    DoorRule("S11 nobody above the limits", nobody_above_the_limits),
    DoorRule("S11 nobody polite is limited", s11.impolite),
)
