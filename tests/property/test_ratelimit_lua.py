"""The Lua script gives the answers of the pure model, on a real server, over random histories."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.limiter import POLICIES, SCRIPT, SENTINEL
from ratelimit.policy import Algorithm, Policy
from tests.support.redis_server import redis_server

FIRST = 3  # the place of the first key that is a caller's
HOUR_US = 3_600_000_000  # so long that no key can expire by the server's clock within one history


@pytest.fixture(scope="module")
def redis() -> Iterator["Redis"]:
    """A client of a server of this module's own."""
    with redis_server() as server, Redis.from_url(server.url) as client:
        yield client


def run(redis: Redis, payload: tuple[Any, ...], keys: list[str]) -> tuple[int, str, str, str, list[int]]:
    """Run the script as the limiter does."""
    told = redis.eval(SCRIPT, len(keys) + 2, SENTINEL, POLICIES, *keys, msgspec.msgpack.encode(payload))
    assert isinstance(told, bytes)
    return msgspec.msgpack.decode(told, type=tuple[int, str, str, str, list[int]])


def ask(redis: Redis, policies: list[Policy], requests: list[list[Cell]], now_us: int) -> tuple[int, list[Outcome]]:
    """Limits alone, at a given instant (0: the server's own clock)."""
    keys = {cell.key: cell.policy for request in requests for cell in request}
    names = list(keys)
    payload = (
        now_us,
        [(int(p.algorithm), p.quota, p.window_us, p.burst) for p in policies],
        [policies.index(policy) + 1 for policy in keys.values()],
        [[names.index(cell.key) + FIRST for cell in request] for request in requests],
        [],
        [],
        "owner",
        0,
    )
    now, _, _, _, fields = run(redis, payload, names)
    outcomes = [
        Outcome(allowed == 1, keys[names[told - FIRST]] if told else None, remaining, retry)
        for allowed, told, remaining, retry, _ in zip(*[iter(fields)] * 5, strict=True)
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
