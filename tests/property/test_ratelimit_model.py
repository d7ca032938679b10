"""The limiter's pure rules: what they let through in any window, and what a refusal costs."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ratelimit.bucket import Buckets, Cell
from ratelimit.policy import Algorithm, Policy

SECOND_US = 1_000_000


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies of both algorithms with awkward rates: quotas that divide no window."""
    algorithm = draw(st.sampled_from(Algorithm))
    quota, window_us = draw(st.integers(1, 9)), draw(st.sampled_from([7, 1_000, 999_983, SECOND_US]))
    burst = quota if algorithm is Algorithm.SLIDING_WINDOW else draw(st.integers(1, 12))
    return Policy("user", "user", algorithm, quota, window_us, burst)


@st.composite
def arrivals(draw: st.DrawFn, window_us: int) -> list[int]:
    """Instants in order: bursts, pauses around one window, and steps of a microsecond."""
    steps = st.one_of(
        st.just(0), st.integers(0, 3), st.integers(0, window_us), st.just(window_us), st.just(window_us - 1)
    )
    now, instants = 10**15, []
    for step in draw(st.lists(steps, max_size=60)):
        now += step
        instants.append(now)
    return instants


@given(st.data(), policies())
def test_any_window_admits_at_most_capacity_and_rate(data: st.DataObject, policy: Policy) -> None:
    """S11, and stricter: from any admission to any other there are at most capacity + rate * length of them."""
    buckets, cell = Buckets(10), Cell("k", policy)
    admitted = [now for now in data.draw(arrivals(policy.window_us)) if buckets.check([[cell]], now)[0].allowed]
    rate = Fraction(policy.quota, policy.window_us)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= policy.burst + rate * (admitted[last] - start)


@given(st.data(), policies())
def test_a_sliding_window_never_holds_more_than_its_quota(data: st.DataObject, policy: Policy) -> None:
    """In any half-open window of a sliding_window policy, at most `quota` are let through."""
    if policy.algorithm is not Algorithm.SLIDING_WINDOW:
        return
    buckets, cell = Buckets(10), Cell("k", policy)
    admitted = [now for now in data.draw(arrivals(policy.window_us)) if buckets.check([[cell]], now)[0].allowed]
    for start in admitted:
        assert sum(start <= now < start + policy.window_us for now in admitted) <= policy.quota


@given(policies())
def test_a_polite_client_is_never_limited(policy: Policy) -> None:
    """A client that keeps exactly to the rate, for ever, is never refused: no rate is rounded against it."""
    buckets, cell = Buckets(10), Cell("k", policy)
    # A whole instant misses the exact one by a part of a microsecond: at most quota - 1 units of debt. A bucket of one
    # has no room for them, nor has a small one that lets more than one through in a microsecond.
    quota = policy.quota if (policy.burst - 1) * policy.window_us >= policy.quota - 1 else 1
    for n in range(300):
        assert buckets.check([[cell]], 10**15 + n * policy.window_us // quota)[0].allowed


@given(st.data(), policies())
def test_retry_is_the_first_instant_that_is_let_through(data: st.DataObject, policy: Policy) -> None:
    """Who waits `retry_us` is let through; a microsecond earlier is too early."""
    instants = data.draw(arrivals(policy.window_us))
    for early in (0, 1):
        buckets, cell, now = Buckets(10), Cell("k", policy), 10**15
        for now in instants:
            buckets.check([[cell]], now)
        while (outcome := buckets.check([[cell]], now)[0]).allowed:
            pass
        assert buckets.check([[cell]], now + outcome.retry_us - early)[0].allowed is (early == 0)


@given(st.data(), policies(), policies())
def test_a_refused_request_spends_nothing_in_other_policies(data: st.DataObject, first: Policy, second: Policy) -> None:
    """Asking again and again while one policy refuses leaves the other as if it had not been asked."""
    now = 10**15
    both, alone = Buckets(10), Buckets(10)
    a, b = Cell("a", first), Cell("b", second)
    while both.check([[a]], now)[0].allowed:
        pass
    asked = data.draw(st.integers(1, 20))
    assert not any(outcome.allowed for outcome in both.check([[b, a]] * asked, now))
    assert both.check([[b]], now) == alone.check([[b]], now)


@given(policies(), policies())
def test_an_admitted_request_spends_one_in_each_policy(first: Policy, second: Policy) -> None:
    """At one instant as many pass as the tighter policy holds, and the wider one has that many fewer left."""
    buckets, a, b = Buckets(10), Cell("a", first), Cell("b", second)
    outcomes = buckets.check([[a, b]] * 30, 10**15)
    passed = sum(outcome.allowed for outcome in outcomes)
    assert passed == min(first.burst, second.burst)
    assert [outcome.allowed for outcome in buckets.check([[b]] * 30, 10**15)].count(True) == second.burst - passed
    assert [outcome.allowed for outcome in buckets.check([[a]] * 30, 10**15)].count(True) == first.burst - passed


@given(st.lists(st.integers(0, 50), max_size=200))
def test_memory_stays_within_its_limit(callers: list[int]) -> None:
    """However many callers come, at most `keys_max` are remembered, the latest ones."""
    buckets = Buckets(5)
    policy = Policy("user", "user", Algorithm.TOKEN_BUCKET, 1, SECOND_US, 1)
    for n, caller in enumerate(callers):
        buckets.check([[Cell(str(caller), policy)]], 10**15 + n)
        assert len(buckets) <= 5
    if callers:
        assert not buckets.check([[Cell(str(callers[-1]), policy)]], 10**15 + len(callers))[0].allowed
