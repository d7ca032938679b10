"""The limiter on a real server: shared by all gateways, and what happens while the server is away."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from devstack.ports import anywhere, is_free
from ratelimit.limiter import POLICIES, REDIS_CONNECTIONS_MAX, REDIS_WAIT_S, Limiter, Subject, connect
from ratelimit.policy import parse_policies
from tests.support.faults.proxy import HOST, proxy
from tests.support.processes.redis_server import RedisServer, redis_server

ANSWERS_AGAIN_S_MAX = 20.0
PATIENT_S = 5.0
SHORT_S = 0.75  # for tests in which it runs out; long for a server that is only busy
SHORTEST_S = 0.2  # so that what takes longer is still in time for a command


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of this test's own."""
    with redis_server() as running:
        yield running


@asynccontextmanager
async def limiter_on(server: RedisServer, limits: str, gateways: int = 1) -> AsyncIterator[Limiter]:
    """One gateway's limiter; patient, so that a busy machine is not taken for an outage."""
    redis = connect(server.url)
    try:
        yield Limiter(redis, parse_policies(limits), gateways=gateways, wait_s=PATIENT_S)
    finally:
        await redis.aclose()


async def answers_again(limiter: Limiter) -> None:
    """Refresh until Redis is used again."""
    deadline = time.monotonic() + ANSWERS_AGAIN_S_MAX
    while limiter.degraded:
        assert time.monotonic() < deadline, "Redis is up, but not used again"
        await limiter.refresh()


async def tcp_port(server: RedisServer) -> int:
    """Let the server listen on TCP too."""
    port = next(one for one in anywhere() if is_free(one))
    async with connect(server.url) as redis:
        await redis.config_set("port", port)
    return port


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
    """Of one batch's requests from one address the first ones pass; the refused ones keep their users' tokens."""
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


async def test_a_hanging_server_costs_one_wait(server: RedisServer) -> None:
    """Of a frozen server only the first batch waits; none does until a refresh was answered."""
    registry = CollectorRegistry()

    def calls() -> float:
        return registry.get_sample_value("stampede_limit_call_seconds_count") or 0

    async with connect(server.url) as redis:
        limiter = Limiter(redis, parse_policies("user:token_bucket:1000/s"), registry=registry, wait_s=SHORT_S)
        await limiter.open()
        await answers_again(limiter)
        server.freeze()
        assert (await limiter.check([Subject("a")]))[0].degraded
        for _ in range(2):
            refreshing = asyncio.create_task(limiter.refresh())
            while not refreshing.done():
                assert (await limiter.check([Subject("a")] * 5))[0].degraded
                await asyncio.sleep(0.002)
        assert calls() == 1
        assert registry.get_sample_value("stampede_limit_degraded_state") == 1
        server.thaw()
        await answers_again(limiter)
        assert not (await limiter.check([Subject("a")]))[0].degraded
        assert (calls(), registry.get_sample_value("stampede_limit_degraded_state")) == (2, 0)


async def test_a_slow_server_is_away_for_batches_and_heard_for_its_policies(server: RedisServer) -> None:
    """One that always takes longer than a batch waits: no batch waits for it again, and changed limits are learned."""
    registry = CollectorRegistry()
    async with limiter_on(server, "user:token_bucket:1/h") as fast:
        with proxy(await tcp_port(server)) as slow:
            async with connect(f"redis://{HOST}:{slow.port}") as redis:
                limiter = Limiter(redis, parse_policies("user:token_bucket:1/h"), registry=registry, wait_s=SHORTEST_S)
                await limiter.open()
                await answers_again(limiter)
                slow.slow(latency_s=0.75 * SHORTEST_S)  # each way
                assert [v.degraded for v in await limiter.check([Subject("a")])] == [True]
                version = await fast.change("user:token_bucket:3/h")
                async with asyncio.timeout(ANSWERS_AGAIN_S_MAX):
                    while limiter.version != version:
                        await limiter.refresh()
                        assert [v.degraded for v in await limiter.check([Subject("b")])] == [True]
                assert limiter.policies[0].quota == 3
                assert registry.get_sample_value("stampede_limit_call_seconds_count") == 1
                slow.flow()
                await answers_again(limiter)


async def test_a_server_that_refuses_writes_is_away(server: RedisServer) -> None:
    """A replica, a full or a failing one: it could count nothing, so it is not used until it takes writes again."""
    async with limiter_on(server, "user:token_bucket:1/h") as limiter:
        await limiter.open()
        await limiter.redis.config_set("min-replicas-to-write", 1)
        assert (await limiter.check([Subject("a")]))[0].degraded
        await limiter.refresh()
        assert limiter.degraded
        await limiter.redis.config_set("min-replicas-to-write", 0)
        await answers_again(limiter)
        assert not (await limiter.check([Subject("a")]))[0].degraded


async def test_a_hanging_server_gathers_no_connections(server: RedisServer) -> None:
    """However many batches were under way when it froze, none keeps a connection; a refresh has one at a time."""
    port = await tcp_port(server)

    def open_ones() -> int:
        return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process().net_connections("tcp"))

    async with connect(f"redis://{HOST}:{port}") as redis:
        limiter = Limiter(redis, parse_policies("user:token_bucket:1000/s"), wait_s=SHORT_S)
        await limiter.open()
        await answers_again(limiter)
        server.freeze()
        batches = [asyncio.create_task(limiter.check([Subject("a")])) for _ in range(5 * REDIS_CONNECTIONS_MAX)]
        most = 0
        while not all(batch.done() for batch in batches):
            await asyncio.sleep(0.005)
            most = max(most, open_ones())
        assert 1 < most <= REDIS_CONNECTIONS_MAX
        assert all(batch.result()[0].degraded for batch in batches)
        for _ in range(2):
            await limiter.refresh()
            assert open_ones() <= 1
        server.thaw()
        await answers_again(limiter)


async def test_more_calls_than_connections_wait_for_one(server: RedisServer) -> None:
    """A healthy server is not away because many ask it at the same time."""
    async with connect(server.url) as redis:
        assert await asyncio.gather(*[redis.ping() for _ in range(3 * REDIS_CONNECTIONS_MAX)])
        assert int((await redis.info("clients"))["connected_clients"]) <= REDIS_CONNECTIONS_MAX


class DeafToBatches(Redis):
    """A client of a real server on which the batches' script never ends."""

    async def evalsha(self, *_words: Any) -> Any:
        """Hang."""
        await asyncio.Event().wait()


async def test_a_batch_that_fails_after_the_limits_changed_is_judged_by_those_it_began_with(
    server: RedisServer,
) -> None:
    """Changed limits come into force between a batch's question and the end of its patience."""
    async with limiter_on(server, "user:token_bucket:1/h") as other:
        await other.change("user:token_bucket:3/h")
        async with DeafToBatches.from_pool(connect(server.url).connection_pool) as redis:
            limiter = Limiter(redis, parse_policies("user:token_bucket:2/h"), wait_s=SHORT_S)
            batch = asyncio.create_task(limiter.check([Subject("a")] * 4))
            await limiter.refresh()
            assert (limiter.policies[0].quota, batch.done()) == (3, False)
            verdicts = await batch
    assert [verdict.allowed for verdict in verdicts] == [True, True, False, False]
    assert verdicts[0].degraded


async def test_a_pause_of_this_process_is_not_taken_for_redis(server: RedisServer) -> None:
    """Whenever the event loop stands still for longer than REDIS_WAIT_S, an answer that came meanwhile counts."""

    async def stand_still(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(1.5 * REDIS_WAIT_S)  # noqa: ASYNC251 - standing still is the fault this test makes

    async with connect(server.url) as redis:
        limiter = Limiter(redis, parse_policies("user:token_bucket:1000/s"))
        await limiter.open()
        for turns in range(8):
            (verdict,), _ = await asyncio.gather(limiter.check([Subject("a")]), stand_still(turns))
            assert not verdict.degraded, f"after {turns} turns"


class AnswersAtOnce(Redis):
    """A client that answers without a turn of the loop, as the script of policies would."""

    asked: list[tuple[int, str, str]]

    async def execute_command(self, *words: Any, **_options: Any) -> Any:
        """Keep what is told."""
        version, line, how = words[4:]
        self.asked.append((version, line, how))
        return f"{version + (how == 'change')} {line}".encode()


async def test_a_version_is_never_told_with_the_text_of_another() -> None:
    """Limits that change while a refresh begins: it would put older ones back, under the newer version."""
    redis = AnswersAtOnce()
    redis.asked = []
    limiter = Limiter(redis, parse_policies("user:token_bucket:1/h"))
    await asyncio.gather(limiter.refresh(), limiter.change("user:token_bucket:3/h"))
    assert sorted(redis.asked) == [(0, "", ""), (0, "user:token_bucket:3/h", "change")]
    await limiter.refresh()
    assert redis.asked[-1] == (1, "user:token_bucket:3/h", "")


async def test_newer_limits_win_over_what_an_older_copy_of_redis_says(server: RedisServer) -> None:
    """Whoever knows later ones puts them back; text that is none changes nothing and is no outage."""
    async with limiter_on(server, "user:token_bucket:1/h") as one, limiter_on(server, "user:token_bucket:1/h") as two:
        version = await one.change("user:token_bucket:3/h")
        await two.refresh()
        assert (two.version, two.policies[0].quota) == (version, 3)
        for older in (f"{version - 1} user:token_bucket:9/h", "no limits at all", "7 user:leaky:1/h", b"\xff\xff 1"):
            await one.redis.set(POLICIES, older)
            await two.refresh()
            assert (two.policies[0].quota, two.degraded) == (3, False)
            assert await one.redis.get(POLICIES) == f"{version} user:token_bucket:3/h".encode()
        assert (await one.check([Subject("a")] * 4))[3].allowed is False


async def test_newer_limits_that_cannot_be_read_are_said_once_and_left_there(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a later release, say: they stay in Redis, ours in force, and a change still overtakes them."""
    async with limiter_on(server, "user:token_bucket:2/h") as limiter:
        newest = 9_000_000_000_000
        await limiter.redis.set(POLICIES, f"{newest} user:leaky:1/h")
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await limiter.refresh()
        assert caplog.text.count("cannot be read") == 1
        assert (limiter.policies[0].quota, limiter.degraded) == (2, False)
        assert await limiter.redis.get(POLICIES) == f"{newest} user:leaky:1/h".encode()
        assert await limiter.change("user:token_bucket:4/h") == newest + 1
        await limiter.redis.delete(POLICIES)
        assert await limiter.change("user:token_bucket:5/h") == newest + 2, "later than what Redis forgot"
        assert limiter.policies[0].quota == 5
