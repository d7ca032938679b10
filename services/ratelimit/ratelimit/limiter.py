"""Asks Redis about a whole tick in one call, and this process's own buckets when Redis does not answer.

It never raises into the purchase path and never waits longer than REDIS_WAIT_S; neither open nor closed while
Redis is away, but limited to this gateway's share.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine, Sequence
from importlib import resources
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.policy import Policy, network_of
from telemetry import names

REDIS_WAIT_S = 0.05
# After a failure Redis is left alone this long; then one batch, and only one, tries it again.
REDIS_PAUSE_S = 1.0
LAST_LOOK_S = 0.01  # the part of REDIS_WAIT_S that is granted even when the first part went by in one turn
REDIS_CONNECTIONS_MAX = 32
LOCAL_KEYS_MAX = 100_000
BATCH_MAX = 500
USER_CHARS_MAX = 64  # a longer user name is counted under its hash

SCRIPT = resources.files("ratelimit").joinpath("lua/check.lua").read_text("utf-8")
SCRIPT_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode


class Subject(NamedTuple):
    """Who asks: the user's pseudonym and the client's address; policies of a missing one do not apply."""

    user: str | None = None
    address: str | None = None


class Verdict(NamedTuple):
    """The answer about one request. `policy` is the one to tell the caller about; None: none applied.

    `retry_after_s` is 0 when allowed, else at least 1. `degraded`: judged here, because Redis did not answer.
    """

    allowed: bool
    policy: Policy | None
    remaining: int
    retry_after_s: int
    degraded: bool

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy`, `RateLimit` and, when refused, `Retry-After`; empty when no policy applied."""
        if self.policy is None:
            return {}
        seconds = self.retry_after_s or -(-self.policy.window_us // 1_000_000)
        told = {
            "RateLimit-Policy": self.policy.header,
            "RateLimit": f'"{self.policy.name}";r={self.remaining};t={seconds}',
        }
        return told if self.allowed else told | {"Retry-After": str(self.retry_after_s)}


class LimiterMetrics:
    """What the limiter tells Prometheus, in a registry of the caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        checks = Counter(names.LIMIT_CHECKS, "Requests judged", ["outcome"], registry=registry)
        self.allowed, self.refused = checks.labels("allowed"), checks.labels("refused")
        self.degraded = Counter(names.LIMIT_CHECKS_DEGRADED, "Requests judged without Redis", registry=registry)
        self.away = Gauge(names.LIMIT_DEGRADED, "1 while Redis is away", registry=registry)
        self.call = Histogram(
            names.LIMIT_CALL_SECONDS,
            "One call to Redis, with its timeouts",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
            registry=registry,
        )


def connect(url: str) -> Redis:
    """A client fit for the limiter: no retries of its own (the limiter has a better answer). Connects on use.

    Raises ValueError when the URL cannot be read.
    """
    return Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=None, max_connections=REDIS_CONNECTIONS_MAX, protocol=2
    )


class Limiter:
    """Judges batches of requests by several policies at once; one Redis call a batch."""

    def __init__(
        self, redis: Redis, policies: Sequence[Policy], *, gateways: int = 1, registry: CollectorRegistry | None = None
    ) -> None:
        self.policies = tuple(policies)
        self.redis = redis
        self._metrics = LimiterMetrics(registry or CollectorRegistry())
        self._local = Buckets(LOCAL_KEYS_MAX)
        # Local use is counted by the share, but told in the words of the policy itself.
        self._share = {policy: policy.share(gateways) for policy in self.policies}
        self._whole = {share: policy for policy, share in self._share.items()}
        self._wire = [(int(p.algorithm), p.quota, p.window_us, p.burst) for p in self.policies]
        self._place = {policy: place for place, policy in enumerate(self.policies, start=1)}
        self._resume_at = 0.0

    @property
    def degraded(self) -> bool:
        """Whether Redis did not answer when last asked."""
        return self._resume_at > 0

    async def check(self, batch: Sequence[Subject]) -> list[Verdict]:
        """Judge up to BATCH_MAX requests in order, one verdict each; never raises for Redis' sake.

        A request that one policy refuses spends nothing in the others.
        """
        assert len(batch) <= BATCH_MAX
        if not batch:
            return []
        requests = [self._cells(subject) for subject in batch]
        outcomes = await self._ask_redis(requests)
        degraded = outcomes is None
        if outcomes is None:
            outcomes = self._ask_local(requests)
            self._metrics.degraded.inc(len(batch))
        allowed = sum(outcome.allowed for outcome in outcomes)
        self._metrics.allowed.inc(allowed)
        self._metrics.refused.inc(len(batch) - allowed)
        return [Verdict(o.allowed, o.policy, o.remaining, -(-o.retry_us // 1_000_000), degraded) for o in outcomes]

    def _cells(self, subject: Subject) -> list[Cell]:
        user, address = subject
        if user is not None and (len(user) > USER_CHARS_MAX or not user.isascii()):
            user = hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        names = {"user": user, "address": address and network_of(address)}
        return [
            Cell(policy.key_prefix + name, policy)
            for policy in self.policies
            if (name := names[policy.scope]) is not None
        ]

    def _ask_local(self, requests: list[list[Cell]]) -> list[Outcome]:
        mine = [[Cell(cell.key, self._share[cell.policy]) for cell in cells] for cells in requests]
        outcomes = self._local.check(mine, time.monotonic_ns() // 1000)
        return [o._replace(policy=self._whole[o.policy]) if o.policy else o for o in outcomes]

    async def _ask_redis(self, requests: list[list[Cell]]) -> list[Outcome] | None:
        started = time.monotonic()
        if started < self._resume_at:
            return None
        if self.degraded:
            self._resume_at = started + REDIS_PAUSE_S  # this batch is the one that tries; the others go on without
        try:
            outcomes = await _within(REDIS_WAIT_S, self._call(requests))
        except Exception as error:  # whatever went wrong with Redis, purchases go on
            if not self.degraded:
                _log.warning("Redis does not answer (%r): limiting by this process's own share", error)
            self._resume_at = time.monotonic() + REDIS_PAUSE_S
            self._metrics.away.set(1)
            return None
        finally:
            self._metrics.call.observe(time.monotonic() - started)
        if self.degraded:
            _log.warning("Redis answers again")
            self._resume_at = 0.0
            self._metrics.away.set(0)
        return outcomes

    async def _call(self, requests: list[list[Cell]]) -> list[Outcome]:
        policy_of = {key: policy for cells in requests for key, policy in cells}
        place = {key: n for n, key in enumerate(policy_of, start=1)}
        policies = list(policy_of.values())
        payload = _encode(
            (
                0,
                self._wire,
                [self._place[policy] for policy in policies],
                [[place[key] for key, _ in cells] for cells in requests],
            )
        )
        try:
            answer = await self.redis.evalsha(SCRIPT_SHA, len(place), *place, payload)
        except NoScriptError:
            answer = await self.redis.eval(SCRIPT, len(place), *place, payload)
        fields = iter(answer[1:])
        return [
            Outcome(allowed == 1, policies[told - 1] if told else None, remaining, retry_us)
            for allowed, told, remaining, retry_us in zip(fields, fields, fields, fields, strict=True)
        ]


async def _within(wait_s: float, work: Coroutine[None, None, list[Outcome]]) -> list[Outcome]:
    """The result of `work`, or TimeoutError; unlike asyncio.timeout not fooled by a pause of this process.

    After such a pause the answer may lie unread, or the question unsent, when the time is over: hence a last look.
    """
    task = asyncio.create_task(work)
    try:
        for part_s in (wait_s - LAST_LOOK_S, LAST_LOOK_S):
            if not task.done():
                await asyncio.wait({task}, timeout=part_s)
        if not task.done():
            raise TimeoutError(f"no answer within {wait_s} s")
        return task.result()
    finally:
        task.cancel()
