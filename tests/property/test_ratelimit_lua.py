"""The Lua script gives the answers of the pure model, on a real server, over random histories."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.claim import DEADLINE_S, KEPT_S, Claim, Known, Settled
from ratelimit.limiter import CLAIM_PREFIX, POLICIES, SCRIPT, SENTINEL
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
    payload: tuple[Any, ...] = (
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


class Book:
    """The rule of claims in plain words: id -> (state, until when in ms, owner, fingerprint, buyer)."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, int, str, str, str]] = {}

    def settle(self, each: Settled, owner: str, now_ms: int) -> None:
        """Accepted is accepted, whoever says so; the rest is for a claim's owner while it is in flight."""
        state, _, whose, _, _ = self.kept.get(each.id, ("", 0, "", "", ""))
        if each.how == "a":
            if state != "a":
                self.kept[each.id] = ("a", now_ms, owner, each.fingerprint, each.buyer)
        elif (state, whose) == ("i", owner):
            if each.how == "d":
                del self.kept[each.id]
            else:
                self.kept[each.id] = ("i", 0, owner, each.fingerprint, each.buyer)

    def known(self, claim: Claim, now_ms: int) -> Known:
        """What a request is told of the claim that is there."""
        state, until_ms, _, fingerprint, _ = self.kept.get(claim.id, ("", 0, "", "", ""))
        if not state:
            return Known.NEW
        if state == "i" and until_ms < now_ms:
            return Known.AGAIN
        if fingerprint != claim.fingerprint:
            return Known.OTHER
        return Known.ACCEPTED if state == "a" else Known.IN_FLIGHT

    def take(self, claim: Claim, owner: str, now_ms: int) -> None:
        """In flight for as long as a claim may be."""
        until_ms = now_ms + int(DEADLINE_S * 1000)
        self.kept[claim.id] = ("i", until_ms, owner, claim.fingerprint, claim.buyer)


names, bodies = st.sampled_from("abc"), st.sampled_from(["f1", "f2"])
claims = st.builds(Claim, names, bodies, st.just("ann"), st.booleans())
settled = st.builds(Settled, names, bodies, st.just("ann"), st.sampled_from(["a", "o", "d"]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1_000, 9_999_000, 10_000_000, 10_001_000]),
            st.sampled_from(["one", "two"]),
            st.lists(claims, max_size=5),
            st.lists(settled, max_size=3),
        ),
        max_size=10,
    ),
    st.integers(1, 4),
)
def test_claims_equal_their_model(
    redis: Redis, ticks: list[tuple[int, str, list[Claim], list[Settled]]], burst: int
) -> None:
    """What is known, what it spends, what is kept: two gateways, repeats in one tick, deadlines met to the ms."""
    redis.flushall()
    policy = Policy("bucket", "user", Algorithm.TOKEN_BUCKET, 1, HOUR_US, burst)
    model, book, now = Buckets(10), Book(), 1_800_000_000_000_000
    for step, owner, batch, ended in ticks:
        now += step
        ids = [claim.id for claim in batch] + [each.id for each in ended]
        keys = ["{rl}:ann", *[CLAIM_PREFIX + each for each in ids]]
        places = range(FIRST + 1, FIRST + len(keys))
        payload = (
            now,
            [(int(policy.algorithm), policy.quota, policy.window_us, policy.burst)],
            [1],
            [[FIRST]] * len(batch),
            [(n, c.fingerprint, c.buyer, int(c.wanted)) for n, c in zip(places, batch, strict=False)],
            [(n, s.fingerprint, s.buyer, s.how) for n, s in zip(places[len(batch) :], ended, strict=True)],
            owner,
            0,
        )
        fields = run(redis, payload, keys)[4]
        for each in ended:
            book.settle(each, owner, now // 1000)
        for number, claim in enumerate(batch):
            known = book.known(claim, now // 1000)
            allowed = known is not Known.NEW or model.check([[Cell("ann", policy)]], now)[0].allowed
            assert (fields[number * 5], fields[number * 5 + 4]) == (allowed, known)
            if known is Known.AGAIN or (known is Known.NEW and claim.wanted and allowed):
                book.take(claim, owner, now // 1000)
        kept = {name: redis.get(CLAIM_PREFIX + name) for name in "abc"}
        told = {name: " ".join(map(str, parts)).encode() for name, parts in book.kept.items()}
        assert {name: value for name, value in kept.items() if value} == told
        for name in told:
            assert KEPT_S - 60 < redis.ttl(CLAIM_PREFIX + name) <= KEPT_S


def test_the_stamp_changes_with_a_flush_and_not_otherwise(redis: Redis) -> None:
    """The sentinel is gone with the claims; the run is that of the server's process."""
    redis.flushall()
    empty: tuple[Any, ...] = (0, [], [], [], [], [], "one", 0)
    redis.set(SENTINEL, "s")
    first, again = run(redis, empty, [])[1], run(redis, empty, [])[1]
    assert first == again == f"s {redis.info('server')['run_id']} {redis.info('stats')['evicted_keys']}"
    redis.flushall()
    assert run(redis, empty, [])[1] != first


def test_the_stamp_changes_when_keys_are_evicted(redis: Redis) -> None:
    """A server that drops keys for want of memory may have dropped claims."""
    redis.flushall()
    empty: tuple[Any, ...] = (0, [], [], [], [], [], "one", 0)
    before = run(redis, empty, [])[1]
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) + 200_000)
    try:
        for n in range(1_000):
            redis.set(f"filler-{n}", "x" * 1_000)
        assert run(redis, empty, [])[1] != before
    finally:
        redis.config_set("maxmemory", 0)
        redis.config_set("maxmemory-policy", "noeviction")
