"""No more than the limits allow is let through in any window, and who keeps to them is never limited."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from replay.evidence import Evidence, Findings, Violation
from replay.journal import UNANSWERED, Attempt, Told

NAME = "S11"
NEEDS: tuple[str, ...] = ("journal", "limits")
LOOKS_AT = "sends"
LIMITED = 429
UNSURE_MS = 1.0  # clocks are read to the ms


class Allowance(NamedTuple):
    """One policy. `sliding`: at most `capacity` in any window of `window_ms`; else as many at once, then `per_ms`."""

    scope: str
    sliding: bool
    capacity: int
    window_ms: float
    per_ms: float


class Span(NamedTuple):
    """Something that happened once between two instants of the driver's clock."""

    from_ms: float
    to_ms: float


def check(evidence: Evidence) -> Findings:
    """Look for what cannot have been let through, and for what must have been.

    A driver knows of each send only when it began and when it was answered: a violation is what holds for every
    instant in between. One key is let through once; a repeat of it costs nothing.
    """
    assert evidence.journal is not None
    assert evidence.journal.limits is not None
    limits, attempts = evidence.journal.limits, evidence.journal.attempts
    whole = list(allowances(limits.line))
    admitted = defaultdict[tuple[str, str], list[Span]](list)
    spent = defaultdict[tuple[str, str], list[Span]](list)
    for attempt in attempts:
        for name in (("user", attempt.buyer), ("address", "")):  # a driver has one address
            admitted[name] += _admitted(attempt)
            spent[name] += [_span(told) for told in attempt.answers if told.status != LIMITED]
    for policy in whole:
        # Each loss of what was counted, be it by a flush or because a gateway counts alone, gives the capacity anew.
        room = policy.capacity * (1 + limits.losses) + 1
        for (scope, who), spans in admitted.items():
            if scope == policy.scope and (late := overdrawn(spans, room, policy.per_ms)) is not None:
                what = f"{len(spans)} sends of {who or 'all'} were let through, from {late.from_ms:.0f} ms on"
                yield Violation(f"journal/{scope}", f"{what} more than a capacity of {policy.capacity} allows")
    strict = [_share(policy, limits.gateways) for policy in whole] if limits.losses else whole
    for attempt in attempts:
        names = {"user": attempt.buyer, "address": ""}
        for told in attempt.answers:
            if told.status == LIMITED and all(
                _has_room(policy, spent[policy.scope, names[policy.scope]], told) for policy in strict
            ):
                yield Violation(f"journal/{attempt.line}", f"{attempt.buyer} kept to the limits and was told 429")
    return sum(len(attempt.answers) for attempt in attempts)


def allowances(line: str) -> Iterator[Allowance]:
    """Read the setting: `scope:algorithm:quota/window[/burst]`, comma-separated."""
    units = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
    for part in filter(None, (part.strip() for part in line.split(","))):
        scope, algorithm, rate = part.split(":")
        quota, window, *burst = rate.split("/")
        count = window.rstrip("dhmins")
        window_ms = int(count or 1) * units[window[len(count) :]]
        capacity = int(burst[0]) if burst else int(quota)
        yield Allowance(scope, algorithm == "sliding_window", capacity, window_ms, int(quota) / window_ms)


def _share(policy: Allowance, gateways: int) -> Allowance:
    """What one of several gateways that cannot ask each other allows: at least one at once."""
    capacity = max(1, policy.capacity // gateways)
    per_ms = policy.per_ms / gateways
    return policy._replace(capacity=capacity, per_ms=per_ms, window_ms=capacity / per_ms if policy.sliding else 0)


def _admitted(attempt: Attempt) -> Iterator[Span]:
    """Once for the purchase, by its first answer at the latest; once for each time a gateway was reached."""
    accepted = [told.answered_ms for told in attempt.answers if told.status in {201, 202} or _final(told)]
    if accepted:
        yield Span(min(told.sent_ms for told in attempt.answers), min(accepted))
    for told in attempt.answers:
        if told.status == 409 and str(told.content.get("type")).rpartition("/")[2] in {"sold-out", "not-open"}:
            yield Span(told.sent_ms, told.answered_ms)


def _span(told: Told) -> Span:
    # What got no answer may have been looked at any time later.
    return Span(told.sent_ms, inf if told.status == UNANSWERED else told.answered_ms)


def _final(told: Told) -> bool:
    return told.status == 409 and bool(told.content.get("purchase_id"))


def overdrawn(spans: Sequence[Span], room: float, per_ms: float, lost: Iterable[Span] = ()) -> Span | None:
    """One that cannot have been let through with those that lie after it, if each took one of `room` at some instant.

    Between any two instants no more than `room` and what fills up at `per_ms` can be taken, and `room` once more for
    each of `lost`, where all was given back at once: so many spans at most lie wholly in between. n log n.
    """
    steps = [(span.to_ms + UNSURE_MS, 1.0, span) for span in spans]
    steps += [(span.from_ms, -room, span) for span in lost]  # it may be in between as soon as it began
    steps.sort(key=lambda step: step[:2])
    taken = _Sums(len(steps))

    def begins(place: int) -> float:
        _, weight, span = steps[place]
        return span.from_ms - UNSURE_MS if weight > 0 else span.to_ms

    for place in sorted(range(len(steps)), key=begins, reverse=True):
        end, weight, span = steps[place]
        taken.put(place, weight, 1 - end * per_ms if weight > 0 else -inf)
        if weight > 0 and taken.best + begins(place) * per_ms > room:
            return span
    return None


class _Sums:
    """Numbers in a row, none at first, and the greatest of all sums from the first to any of them, with its offset."""

    def __init__(self, count: int) -> None:
        self._size = 1 << max(0, count - 1).bit_length()
        self._sums = [0.0] * (2 * self._size)
        self._bests = [-inf] * (2 * self._size)

    def put(self, place: int, number: float, best: float) -> None:
        """A number; `best` is itself with the offset of the sum that ends with it, -inf if none does."""
        at = place + self._size
        self._sums[at], self._bests[at] = number, best
        while at > 1:
            at //= 2
            left, right = 2 * at, 2 * at + 1
            self._sums[at] = self._sums[left] + self._sums[right]
            self._bests[at] = max(self._bests[left], self._sums[left] + self._bests[right])

    @property
    def best(self) -> float:
        """The greatest."""
        return self._bests[1]


def _has_room(policy: Allowance, spent: list[Span], told: Told) -> bool:
    """Whether this policy had room for a send, whenever it and all that may have spent something took place."""
    before = sorted(min(span.to_ms, told.sent_ms) for span in spent if span.from_ms <= told.answered_ms)
    if policy.sliding:
        return sum(at >= told.sent_ms - policy.window_ms - UNSURE_MS for at in before) < policy.capacity
    debt, last = 0.0, 0.0
    for at in before:
        debt, last = max(0.0, debt - (at - last) * policy.per_ms) + 1, at
    paid = max(0.0, told.sent_ms - UNSURE_MS - last) * policy.per_ms
    return max(0.0, debt - paid) + 1 <= policy.capacity
