"""The Lua script gives the answers of the pure model, on a real server, over random histories."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.limiter import BATCH_MAX, SCRIPT
from ratelimit.policy import POLICIES_MAX, SLIDING_QUOTA_MAX, Algorithm, Policy
from tests.support.processes.redis_server import redis_server

HOUR_US = 3_600_000_000  # so long that no key can expire by the server's clock within one history


@pytest.fixture(scope="module")
def redis() -> Iterator["Redis"]:
    """A client of a server of this module's own."""
    with redis_server() as server, Redis.from_url(server.url) as client:
        yield client


def ask(redis: Redis, policies: list[Policy], requests: list[list[Cell]], now_us: int) -> tuple[int, list[Outcome]]:
    """Run the script as the limiter does, at a given instant (0: the server's own clock)."""
    keys = {cell.key: cell.policy for request in requests for cell in request}
    names = list(keys)
    payload = (
        now_us,
        [(int(p.algorithm), p.quota, p.window_us, p.burst) for p in policies],
        [policies.index(policy) + 1 for policy in keys.values()],
        [[names.index(cell.key) + 1 for cell in request] for request in requests],
    )
    answer = redis.eval(SCRIPT, len(names), *names, msgspec.msgpack.encode(payload))
    assert isinstance(answer, bytes)
    now, fields = msgspec.msgpack.decode(answer, type=tuple[int, list[int]])
    outcomes = [
        Outcome(allowed == 1, keys[names[told - 1]] if told else None, remaining, retry)
        for allowed, told, remaining, retry in zip(*[iter(fields)] * 4, strict=True)
    ]
    return now, outcomes


@st.composite
def policy_sets(draw: st.DrawFn) -> list[Policy]:
    """One to four policies of both algorithms."""
    policies = []
    for n in range(draw(st.integers(1, 4))):
        algorithm, quota = draw(st.sampled_from(Algorithm)), draw(st.integers(1, 7))
        window_us = draw(st.sampled_from([HOUR_US, HOUR_US + 1, 24 * HOUR_US, 3 * HOUR_US - 7]))
        burst = quota if algorithm is Algorithm.SLIDING_WINDOW else draw(st.integers(1, 9))
        policies.append(Policy(f"p{n}", "user", algorithm, quota, window_us, burst))
    return policies


@settings(max_examples=300, deadline=None)
@given(st.data(), policy_sets())
def test_script_equals_model(redis: Redis, data: st.DataObject, policies: list[Policy]) -> None:
    """Same verdict, policy told, remaining and wait, batch by batch, with shared keys and clocks set back."""
    redis.flushall()
    model, now = Buckets(10_000), 1_800_000_000_000_000
    steps = st.one_of(st.integers(0, 5), st.integers(0, 2 * HOUR_US), st.integers(-26 * HOUR_US, 0), st.just(HOUR_US))
    request = st.lists(
        st.tuples(st.sampled_from(range(len(policies))), st.sampled_from("abc")), unique_by=lambda at: at[0], max_size=4
    )
    for step, batch in data.draw(st.lists(st.tuples(steps, st.lists(request, max_size=12)), max_size=12)):
        now += step
        requests = [[Cell(f"{{rl}}:{at}:{who}", policies[at]) for at, who in each] for each in batch]
        assert ask(redis, policies, requests, now) == (now, model.check(requests, now))


def test_script_equals_model_by_the_servers_clock(redis: Redis) -> None:
    """With the server's own clock and keys that expire under way, the model given the same instants agrees."""
    redis.flushall()
    policies = [
        Policy("bucket", "user", Algorithm.TOKEN_BUCKET, 1, 1_009, 3),
        Policy("window", "user", Algorithm.SLIDING_WINDOW, 2, 2_003, 2),
    ]
    model = Buckets(10)
    requests = [[Cell(f"{{rl}}:{policy.name}", policy) for policy in policies]] * 2
    seen: set[tuple[bool, Policy | None]] = set()
    for _ in range(2_000):
        now, outcomes = ask(redis, policies, requests, 0)
        assert outcomes == model.check(requests, now)
        seen.update((outcome.allowed, outcome.policy) for outcome in outcomes)
    assert len(seen) >= 3, "the history must meet admissions and refusals by both policies"


def test_keys_expire_by_themselves(redis: Redis) -> None:
    """Every key the script writes has a time to live of at most what it needs to be forgotten."""
    redis.flushall()
    policies = [
        Policy("bucket", "user", Algorithm.TOKEN_BUCKET, 5, 1_000_000, 5),
        Policy("window", "user", Algorithm.SLIDING_WINDOW, 60, 60_000_000, 60),
    ]
    ask(redis, policies, [[Cell("{rl}:bucket", policies[0]), Cell("{rl}:window", policies[1])]], 0)
    assert 0 < redis.pttl("{rl}:bucket") <= 201  # one of five a second
    assert 59_000 < redis.pttl("{rl}:window") <= 60_001


def test_the_largest_batch_is_judged(redis: Redis) -> None:
    """As many requests as a batch may hold, each under as many policies as there may be, on keys of its own."""
    redis.flushall()
    policies = [Policy(f"p{n}", "user", Algorithm.TOKEN_BUCKET, 1, HOUR_US, n + 1) for n in range(POLICIES_MAX)]
    requests = [[Cell(f"{{rl}}:{n}:{policy.name}", policy) for policy in policies] for n in range(BATCH_MAX)]
    model, now = Buckets(BATCH_MAX * POLICIES_MAX), 1_800_000_000_000_000
    for _ in range(2):
        assert ask(redis, policies, requests, now)[1] == model.check(requests, now)
    assert redis.dbsize() == BATCH_MAX * POLICIES_MAX


def test_a_full_window_is_kept_whole(redis: Redis) -> None:
    """A thousand instants, the most that a window holds, filled, refused and emptied one by one."""
    redis.flushall()
    policy = Policy("window", "user", Algorithm.SLIDING_WINDOW, SLIDING_QUOTA_MAX, HOUR_US, SLIDING_QUOTA_MAX)
    cell, model, now = Cell("{rl}:window", policy), Buckets(1), 1_800_000_000_000_000
    for size in (1, 400, 7, 500, 300, 1):
        now += 1_000
        assert ask(redis, [policy], [[cell]] * size, now)[1] == model.check([[cell]] * size, now)
    for at in (HOUR_US - 5_000, 1, 399, 600, 1_000, HOUR_US):
        now += at
        assert ask(redis, [policy], [[cell]] * 3, now)[1] == model.check([[cell]] * 3, now)


def test_a_refusal_is_not_written_down(redis: Redis) -> None:
    """What had left a window when a request was refused is in it again once the clock was set back."""
    redis.flushall()
    window = Policy("window", "user", Algorithm.SLIDING_WINDOW, 2, HOUR_US, 2)
    empty = Policy("empty", "user", Algorithm.TOKEN_BUCKET, 1, 24 * HOUR_US, 1)
    policies, used, spent = [window, empty], Cell("{rl}:window", window), Cell("{rl}:empty", empty)
    model, start = Buckets(10), 1_800_000_000_000_000
    for now, request, remaining in (
        (start, [used, spent], 0),
        (start + HOUR_US, [used, spent], 0),
        (start + 1, [used], 0),
        (start + HOUR_US, [used], 0),
    ):
        outcomes = ask(redis, policies, [request], now)[1]
        assert outcomes == model.check([request], now)
        assert outcomes[0].remaining == remaining
