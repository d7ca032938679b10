"""S11 with nothing forgiven but what is known to have been lost: who cannot have been let through, who must have been.

Pure. Instants are ms of one clock. A driver knows of each send only when it began and when it was answered, so a
violation is what holds for every instant in between.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from replay.rules.s11_limiter import Allowance, Span, overdrawn

UNSURE_MS = 2.0  # clocks are read to the ms at both ends


class Bound(NamedTuple):
    """One counter of one caller. `lost`: it was emptied at an instant within each of these, and at no other."""

    policy: Allowance
    spans: Sequence[Span]
    lost: Sequence[Span] = ()


def too_many(bound: Bound) -> Span | None:
    """A use that cannot have been let through, if each of `spans` was at some instant within it."""
    if bound.policy.sliding:
        return _window_overdrawn(bound)
    return overdrawn(bound.spans, bound.policy.capacity, bound.policy.per_ms, bound.lost)


def _window_overdrawn(bound: Bound) -> Span | None:
    """No window of this length holds more than the quota, nor more than once more for each loss within it."""
    policy, spans = bound.policy, sorted(bound.spans)
    for at, first in enumerate(spans):
        end = first.from_ms + policy.window_ms - UNSURE_MS
        times = 1 + sum(lost.to_ms >= first.from_ms and lost.from_ms <= end for lost in bound.lost)
        left = policy.capacity * times
        for span in _until(spans, at, end):
            left -= span.to_ms < end
            if left < 0:
                return span
    return None


def _until(spans: Sequence[Span], at: int, end: float) -> Iterator[Span]:
    for number in range(at, len(spans)):
        if spans[number].from_ms >= end:
            return
        yield spans[number]


def had_room(bound: Bound, asked: Span) -> bool:
    """Whether who asked within `asked` must have been let through, whenever all that may have spent before took place.

    Losses only give room, so they are not looked at.
    """
    policy = bound.policy
    before = sorted(min(span.to_ms, asked.from_ms) for span in bound.spans if span.from_ms <= asked.to_ms)
    if policy.sliding:
        return sum(at >= asked.from_ms - policy.window_ms - UNSURE_MS for at in before) < policy.capacity
    debt = 0.0
    for last, at in pairwise([*before[:1], *before]):
        debt = max(0.0, debt - (at - last) * policy.per_ms) + 1
    paid = max(0.0, asked.from_ms - UNSURE_MS - before[-1]) * policy.per_ms if before else 0.0
    return max(0.0, debt - paid) + 1 <= policy.capacity


def share(policy: Allowance, gateways: int) -> Allowance:
    """What one of several gateways that cannot ask each other allows: at least one at once."""
    capacity = max(1, policy.capacity // gateways)
    per_ms = policy.per_ms / gateways
    return policy._replace(capacity=capacity, per_ms=per_ms, window_ms=capacity / per_ms)


def scaled(policy: Allowance, by: float) -> Allowance:
    """A tighter or wider one: what would be judged differently under it is what the real one was tested with."""
    return policy._replace(capacity=max(1, int(policy.capacity * by)), per_ms=policy.per_ms * by)
