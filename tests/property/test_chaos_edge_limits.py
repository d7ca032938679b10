"""The checker of limits: an honest limiter is never accused, whatever was slow or lost; one that cheats is."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.rules.s11_limiter import Allowance, Span, overdrawn
from tests.chaos.edge.limits import Bound, had_room, share, too_many

BUCKET = Allowance("user", sliding=False, capacity=3, window_ms=1_000.0, per_ms=0.004)
WINDOW = Allowance("user", sliding=True, capacity=3, window_ms=1_000.0, per_ms=0.003)
GAPS_MS = st.lists(st.floats(0, 900), max_size=40)
LATE_MS = st.lists(st.floats(0, 400), min_size=80, max_size=80)


class Sold(NamedTuple):
    """What an exact limiter made of sends at these instants: those let through, and those refused."""

    through: list[float]
    refused: list[float]


def limiter(policy: Allowance, at: Sequence[float], lost: Sequence[float]) -> Sold:
    """The rule itself, on exact instants."""
    sold, used = Sold([], []), list[float]()
    level, last = 0.0, 0.0
    for now in at:
        if any(last < gone <= now for gone in lost):
            used, level = [], 0.0
        level = max(0.0, level - (now - last) * policy.per_ms)
        last = now
        used = [instant for instant in used if instant > now - policy.window_ms]
        if (len(used) < policy.capacity) if policy.sliding else (level + 1 <= policy.capacity):
            used.append(now)
            level += 1
            sold.through.append(now)
        else:
            sold.refused.append(now)
    return sold


def instants(gaps: Sequence[float]) -> list[float]:
    """One after the other."""
    now, found = 0.0, []
    for gap in gaps:
        now += gap
        found.append(now)
    return found


def blurred(exact: Sequence[float], late: Sequence[float]) -> list[Span]:
    """As a driver sees them: begun before, answered after."""
    return [Span(at - late[2 * n], at + late[2 * n + 1]) for n, at in enumerate(exact)]


@pytest.mark.parametrize("policy", [BUCKET, WINDOW], ids=["bucket", "window"])
@given(gaps=GAPS_MS, late=LATE_MS, lost=st.lists(st.floats(0, 10_000), max_size=3))
def test_an_honest_limiter_is_never_accused(
    policy: Allowance, gaps: list[float], late: list[float], lost: list[float]
) -> None:
    """Neither of letting too many through, nor of refusing somebody who had room."""
    sold = limiter(policy, instants(gaps), lost)
    through = blurred(sold.through, late)
    assert too_many(Bound(policy, through, [Span(at - 5, at + 15) for at in lost])) is None
    if not lost:
        assert not any(had_room(Bound(policy, through), span) for span in blurred(sold.refused, late))


@pytest.mark.parametrize("policy", [BUCKET, WINDOW], ids=["bucket", "window"])
@given(gaps=st.lists(st.floats(0, 50), min_size=12, max_size=40))
def test_a_limiter_that_lets_all_through_is_accused(policy: Allowance, gaps: list[float]) -> None:
    """Where an honest one would have refused several within a window, and each is known to a few ms."""
    at = instants(gaps)
    if len(limiter(policy, at, []).refused) > 5:
        spans = [Span(instant - 1, instant + 3) for instant in at]
        assert too_many(Bound(policy, spans)) is not None


@given(gaps=st.lists(st.floats(0, 600), max_size=40))
def test_a_limiter_that_refuses_all_is_accused(gaps: list[float]) -> None:
    """Whoever asks first had room."""
    spans = [Span(at, at + 5) for at in instants(gaps)]
    assert all(had_room(Bound(BUCKET, []), span) for span in spans)


def test_a_long_answer_does_not_use_up_what_a_short_one_needs() -> None:
    """The long one may have been let through last, although it was sent first."""
    long, short = Span(0, 1_000), Span(1, 1)
    assert overdrawn([long, short], 1, 0.005) is None
    assert overdrawn([long, short, Span(1, 1)], 1, 0.005) is not None


def test_a_loss_gives_the_capacity_once_more_and_no_more_than_that() -> None:
    """To those who came after it only."""
    six = [Span(at, at + 1) for at in (100, 101, 102, 200, 201, 202)]
    between, before = Span(140, 160), Span(10, 20)
    for policy in (BUCKET, WINDOW):
        assert too_many(Bound(policy, six, [between])) is None
        assert too_many(Bound(policy, six, [before])) is not None
        assert too_many(Bound(policy, [*six, Span(203, 204)], [between])) is not None
        assert too_many(Bound(policy, six)) is not None


def test_the_share_of_one_of_two_gateways() -> None:
    """Half the rate, and half of what is let through at once."""
    assert share(BUCKET, 2) == BUCKET._replace(capacity=1, per_ms=0.002, window_ms=500.0)
    assert share(WINDOW, 2).capacity == 1
