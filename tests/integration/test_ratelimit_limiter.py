"""The limiter on a real server: shared by all gateways, and what happens while the server is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from ratelimit.claim import Claim, Known, Settled
from ratelimit.limiter import POLICIES, REDIS_PAUSE_S, REDIS_WAIT_S, Limiter, Subject, connect
from ratelimit.policy import parse_policies
from tests.support.redis_server import RedisServer, redis_server

ANSWERS_AGAIN_S_MAX = 5.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of this test's own."""
    with redis_server() as running:
        yield running


@asynccontextmanager
async def limiter_on(server: RedisServer, limits: str, gateways: int = 1) -> AsyncIterator[Limiter]:
    """One gateway's limiter."""
    redis = connect(server.url)
    registry = CollectorRegistry()
    try:
        yield Limiter(redis, parse_policies(limits), gateways=gateways, registry=registry)
    finally:
        await redis.aclose()


async def seconds_of(call: Callable[[], object]) -> float:
    """How long an awaitable call takes."""
    started = time.monotonic()
    await call()  # type: ignore[misc]
    return time.monotonic() - started


async def answers_again(limiter: Limiter) -> None:
    """Wait until Redis is asked again and answers."""
    deadline = time.monotonic() + ANSWERS_AGAIN_S_MAX
    while True:
        (verdict,) = await limiter.check([Subject("somebody else")])
        if not verdict.degraded:
            assert not limiter.degraded
            return
        assert time.monotonic() < deadline, "Redis is up, but not used again"
        await asyncio.sleep(0.02)


async def test_gateways_share_one_bucket(server: RedisServer) -> None:
    """What one gateway lets through is spent for the other; each verdict tells what is left and when to return."""
    async with limiter_on(server, "user:token_bucket:2/h") as one, limiter_on(server, "user:token_bucket:2/h") as two:
        first, second = (await one.check([Subject("a")]))[0], (await two.check([Subject("a")]))[0]
        third, other = await one.check([Subject("a"), Subject("b")])
    assert (first.allowed, second.allowed, third.allowed, other.allowed) == (True, True, False, True)
    assert (first.remaining, second.remaining, first.degraded) == (1, 0, False)
    assert 1790 <= third.retry_after_s <= 1800
    assert third.headers() == {
        "RateLimit-Policy": '"user";q=2;w=3600',
        "RateLimit": f'"user";r=0;t={third.retry_after_s}',
        "Retry-After": str(third.retry_after_s),
    }


async def test_a_batch_is_judged_in_order(server: RedisServer) -> None:
    """Of one tick's requests from one address the first ones pass; the refused ones keep their users' tokens."""
    limits = "user:sliding_window:1/h,address:token_bucket:3/h"
    async with limiter_on(server, limits) as limiter:
        verdicts = await limiter.check([Subject(f"u{n}", "192.0.2.1") for n in range(5)])
        assert [verdict.allowed for verdict in verdicts] == [True, True, True, False, False]
        assert [verdict.policy.name for verdict in verdicts if verdict.policy] == ["user"] * 3 + ["address"] * 2
        elsewhere = await limiter.check([Subject("u4", "192.0.2.2"), Subject("u0", "192.0.2.2")])
        assert [verdict.allowed for verdict in elsewhere] == [True, False]


async def test_a_subject_without_policy_passes(server: RedisServer) -> None:
    """No policy for what is known of the caller: let through, nothing to tell."""
    async with limiter_on(server, "user:token_bucket:1/h") as limiter:
        (verdict,) = await limiter.check([Subject(address="192.0.2.1")])
    assert (verdict.allowed, verdict.headers()) == (True, {})


async def test_strange_names_are_limited_like_others(server: RedisServer) -> None:
    """Braces, line ends, lone surrogates and very long names are one caller each, and never an outage."""
    async with limiter_on(server, "user:token_bucket:1/h") as limiter:
        for name in ("{x}", "a\r\nDEL b", "\ud800", "é" * 300, "x" * 300, ""):
            assert [v.allowed for v in await limiter.check([Subject(name), Subject(name)])] == [True, False]
        assert not limiter.degraded


async def test_a_server_that_lost_the_script_gets_it_again(server: RedisServer) -> None:
    """After a restart with nothing in memory the same call works, not degraded."""
    async with limiter_on(server, "user:token_bucket:1/h") as limiter:
        assert (await limiter.check([Subject("a")]))[0].allowed
        await limiter.redis.script_flush()
        (verdict,) = await limiter.check([Subject("a")])
    assert (verdict.allowed, verdict.degraded) == (False, False)


async def test_away_means_the_gateways_share_and_back_means_back(server: RedisServer) -> None:
    """While the server is dead each of two gateways lets half through; when it is back, it is asked again."""
    async with limiter_on(server, "user:token_bucket:4/h", gateways=2) as limiter:
        server.stop()
        verdicts = await limiter.check([Subject("a")] * 4)
        assert [(verdict.allowed, verdict.degraded) for verdict in verdicts] == [(True, True)] * 2 + [(False, True)] * 2
        assert verdicts[0].headers()["RateLimit-Policy"] == '"user";q=4;w=3600'
        server.start()
        await answers_again(limiter)
        assert (await limiter.check([Subject("a")]))[0].remaining == 3


async def test_a_hanging_server_costs_one_wait_a_second(server: RedisServer) -> None:
    """A frozen server holds up one batch in a second by REDIS_WAIT_S, and no other; thawed, it is used again."""
    async with limiter_on(server, "user:token_bucket:1000/s") as limiter:
        await limiter.check([Subject("a")])
        server.freeze()
        started, slow, ticks = time.monotonic(), 0, 0
        while time.monotonic() - started < 2 * REDIS_PAUSE_S:
            took = await seconds_of(lambda: limiter.check([Subject("a")] * 5))
            slow, ticks = slow + (took > REDIS_WAIT_S / 2), ticks + 1
            await asyncio.sleep(0.002)
        assert ticks > 100
        assert slow <= 3
        server.thaw()
        await answers_again(limiter)


async def test_a_pause_of_this_process_is_not_taken_for_redis(server: RedisServer) -> None:
    """Whenever the event loop stands still for longer than REDIS_WAIT_S, an answer that came meanwhile counts."""

    async def stand_still(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(1.5 * REDIS_WAIT_S)  # noqa: ASYNC251 - standing still is the fault this test makes

    async with limiter_on(server, "user:token_bucket:1000/s") as limiter:
        await limiter.check([Subject("a")])
        for turns in range(8):
            (verdict,), _ = await asyncio.gather(limiter.check([Subject("a")]), stand_still(turns))
            assert not verdict.degraded, f"after {turns} turns"


async def test_ticks_at_the_same_time_do_not_all_wait(server: RedisServer) -> None:
    """Once the server is known to hang, of many batches at once only the one that tries it again waits."""
    async with limiter_on(server, "user:token_bucket:1000/s") as limiter:
        server.freeze()
        await limiter.check([Subject("a")])
        started, tried = time.monotonic(), 0
        while not tried and time.monotonic() - started < ANSWERS_AGAIN_S_MAX:
            took = await asyncio.gather(*[seconds_of(lambda: limiter.check([Subject("a")])) for _ in range(20)])
            tried = sum(seconds > REDIS_WAIT_S / 2 for seconds in took)
            await asyncio.sleep(0.01)
    assert tried == 1


async def test_newer_limits_win_over_what_an_older_copy_of_redis_says(server: RedisServer) -> None:
    """Whoever knows later ones puts them back; text that is none changes nothing and is no outage."""
    async with limiter_on(server, "user:token_bucket:1/h") as one, limiter_on(server, "user:token_bucket:1/h") as two:
        version = await one.change("user:token_bucket:3/h")
        await two.refresh()
        assert (two.version, two.policies[0].quota) == (version, 3)
        for older in (f"{version - 1} user:token_bucket:9/h", "no limits at all", "7 user:leaky:1/h"):
            await one.redis.set(POLICIES, older)
            await two.refresh()
            assert (two.policies[0].quota, two.degraded) == (3, False)
            assert await one.redis.get(POLICIES) in (f"{version} user:token_bucket:3/h".encode(), older.encode())
        await one.redis.set(POLICIES, f"{version - 1} user:token_bucket:9/h")
        await two.refresh()
        assert await one.redis.get(POLICIES) == f"{version} user:token_bucket:3/h".encode()
        assert (await one.check([Subject("a")] * 4))[3].allowed is False


async def test_a_claim_is_looked_up_and_a_lost_sentinel_is_given_anew(server: RedisServer) -> None:
    """Whose it is and since when; a server without a sentinel gets one, and keeps the one it has."""
    async with limiter_on(server, "user:token_bucket:9/h") as limiter:
        assert (await limiter.judge(look="p")).stamp.startswith(" ")
        await limiter.mark()
        stamp = (await limiter.judge()).stamp
        await limiter.mark()
        judged = await limiter.judge([Subject("a")], [Claim("p", "f", "ann")], look="p")
        assert judged.stamp == stamp
        assert judged.found is not None
        assert (judged.found.buyer, abs(judged.now_ms - judged.found.at_ms) < 50) == ("ann", True)
        accepted = await limiter.judge(settled=[Settled("p", "f", "ann", "a")], look="p")
        assert accepted.found is not None
        assert abs(accepted.now_ms - accepted.found.at_ms) < 50
        again = await limiter.judge([Subject("a")] * 2, [Claim("p", "f", "ann"), Claim("p", "g", "ann")])
        assert [verdict.known for verdict in again.verdicts] == [Known.ACCEPTED, Known.OTHER]
        assert (await limiter.judge(look="q")).found is None
