"""Asks Redis about a whole tick in one call, and this process's own buckets when Redis does not answer.

It never raises into the purchase path and never waits longer than REDIS_WAIT_S; neither open nor closed while
Redis is away, but limited to this gateway's share.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Coroutine, Sequence
from importlib import resources
from typing import Any, NamedTuple

import msgspec
from hiredis import pack_command
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.claim import Claim, Found, Known, Settled, read_claim
from ratelimit.policy import Policy, network_of, parse_policies
from telemetry import names

REDIS_WAIT_S = 0.05
# After a failure Redis is left alone this long; then one batch, and only one, tries it again.
REDIS_PAUSE_S = 1.0
LAST_LOOK_S = 0.01  # the part of REDIS_WAIT_S that is granted even when the first part went by in one turn
REDIS_CONNECTIONS_MAX = 32
LOCAL_KEYS_MAX = 100_000
BATCH_MAX = 500
USER_CHARS_MAX = 64  # a longer user name is counted under its hash

SENTINEL, POLICIES, CLAIM_PREFIX = "{rl}:sentinel", "{rl}:policies", "{rl}:c:"
COMMAND_S_MAX = 1.0  # what is not on the way of a purchase may take longer

SCRIPT = resources.files("ratelimit").joinpath("lua/check.lua").read_text("utf-8")
SCRIPT_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
POLICIES_SCRIPT = resources.files("ratelimit").joinpath("lua/policies.lua").read_text("utf-8")
_KNOWN = tuple(Known)
_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, str, str, str, list[int]]).decode


class RedisAway(Exception):
    """Redis did not answer a command in time."""


class Subject(NamedTuple):
    """Who asks: the user's pseudonym and the client's address; policies of a missing one do not apply."""

    user: str | None = None
    address: str | None = None


class Verdict(NamedTuple):
    """The answer about one request. `policy` is the one to tell the caller about; None: none applied.

    `retry_after_s` is 0 when allowed, else at least 1. `degraded`: judged here, because Redis did not answer.
    What is `known` of its claim counts only if it is not NEW: then it was not judged, and has spent nothing.
    """

    allowed: bool
    policy: Policy | None
    remaining: int
    retry_after_s: int
    degraded: bool
    known: Known = Known.NEW

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
    client: Redis = Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=None, max_connections=REDIS_CONNECTIONS_MAX, protocol=2
    )
    pool = client.connection_pool
    pool.connection_class = type("PackedConnection", (_PackedInC, pool.connection_class), {})
    return client


class _PackedInC:
    """How a connection writes a command; redis-py's own way for asyncio copies all it has with each word of a tick."""

    def pack_command(self, name: str, *words: str | bytes | int) -> list[bytes]:
        """The command as it is sent; a name may be of several words."""
        return [pack_command((*name.split(), *words))]  # type: ignore[arg-type]  # its stub knows of one word


class _InForce:
    """Policies, with everything that is computed of them once."""

    def __init__(self, policies: Sequence[Policy], version: int, line: str, gateways: int) -> None:
        self.policies, self.version, self.line = tuple(policies), version, line
        # Local use is counted by the share, but told in the words of the policy itself.
        self.share = {policy: policy.share(gateways) for policy in self.policies}
        self.whole = {share: policy for policy, share in self.share.items()}
        self.wire = [(int(p.algorithm), p.quota, p.window_us, p.burst) for p in self.policies]
        self.place = {policy: place for place, policy in enumerate(self.policies, start=1)}


class Judged(NamedTuple):
    """The answer to one call. `stamp` is of the memory that was asked, empty when Redis did not answer."""

    verdicts: list[Verdict]
    stamp: str
    now_ms: int
    found: Found | None


class Limiter:
    """Judges batches of requests by several policies at once; one Redis call a batch.

    `policies` are in force until Redis knows others: whoever changes them there (`change`) changes them for everyone
    who is answered by the script from then on, that is with the next batch, or the next `refresh`.
    """

    def __init__(
        self, redis: Redis, policies: Sequence[Policy], *, gateways: int = 1, registry: CollectorRegistry | None = None
    ) -> None:
        self.redis = redis
        self.owner = secrets.token_hex(4)  # whose claims these are
        self._gateways = gateways
        self._force = _InForce(policies, 0, "", gateways)
        self._metrics = LimiterMetrics(registry or CollectorRegistry())
        self._local = Buckets(LOCAL_KEYS_MAX)
        self._resume_at = 0.0
        self._told = ""
        self._behind = False  # Redis knows older policies than we do, or none

    @property
    def degraded(self) -> bool:
        """Whether Redis did not answer when last asked."""
        return self._resume_at > 0

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies in force."""
        return self._force.policies

    @property
    def version(self) -> int:
        """When they were changed, in ms by Redis' clock; 0: never, they are those of the setting."""
        return self._force.version

    async def check(self, batch: Sequence[Subject]) -> list[Verdict]:
        """Judge up to BATCH_MAX requests in order, one verdict each; never raises for Redis' sake.

        A request that one policy refuses spends nothing in the others.
        """
        return (await self.judge(batch)).verdicts if batch else []

    async def judge(
        self,
        batch: Sequence[Subject] = (),
        claims: Sequence[Claim] = (),
        settled: Sequence[Settled] = (),
        look: str = "",
    ) -> Judged:
        """The same with claims (none, or one for each request), after what became of earlier ones.

        `look` is the id of a claim to tell of. Without Redis nothing is claimed, and what is settled is lost.
        """
        assert max(len(batch), len(settled)) <= BATCH_MAX
        requests = [self._cells(subject) for subject in batch]
        judged = await self._ask_redis(requests, claims, settled, look)
        if judged is None:
            verdicts = [_verdict(outcome, degraded=True) for outcome in self._ask_local(requests)]
            self._metrics.degraded.inc(len(batch))
            judged = Judged(verdicts, "", 0, None)
        allowed = sum(verdict.allowed for verdict in judged.verdicts)
        self._metrics.allowed.inc(allowed)
        self._metrics.refused.inc(len(batch) - allowed)
        return judged

    async def open(self) -> None:
        """Connect and bring the script, if Redis is there: the first batch has no time for it."""
        with contextlib.suppress(RedisAway):
            await self._command("SCRIPT", "LOAD", SCRIPT)
        await self.refresh()

    async def refresh(self) -> None:
        """Learn what Redis knows; to be called each second or so where there may be no batch for long."""
        await self.judge()
        await self.mend()

    async def mend(self) -> None:
        """Give a Redis that lost the policies, or knows older ones, those in force."""
        if self._behind and not self.degraded:
            with contextlib.suppress(RedisAway):
                await self._keep(self._force.version, self._force.line)

    async def change(self, line: str) -> int:
        """Put other policies in force, for everyone and for good; their version.

        Raises:
            ValueError: the line cannot be read. RedisAway: nothing was changed, or it is not known.
        """
        parse_policies(line)
        version = await self._keep(0, line)
        self._adopt(f"{version} {line}")
        return version

    async def mark(self) -> None:
        """Give a Redis that has no sentinel one. Raises RedisAway."""
        await self._command("SET", SENTINEL, secrets.token_hex(8), "NX")

    async def _keep(self, version: int, line: str) -> int:
        return int(await self._command("EVAL", POLICIES_SCRIPT, 1, POLICIES, version, line))

    async def _command(self, *words: str | int) -> Any:
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                return await self.redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise RedisAway(str(error)) from None

    def _adopt(self, text: str) -> None:
        """Take the policies that Redis tells of, if they are newer."""
        if text == self._told:
            return
        self._told = text
        version, _, line = text.partition(" ")
        try:
            told = _InForce(parse_policies(line), int(version or 0), line, self._gateways)
        except ValueError as error:
            _log.error("the limits kept in Redis cannot be read (%s): those in force stay", error)
            return
        self._behind = told.version < self._force.version
        if told.version > self._force.version:
            self._force = told
            _log.info("limits changed", extra={"version": told.version, "limits": line})

    def _cells(self, subject: Subject) -> list[Cell]:
        user, address = subject
        if user is not None and (len(user) > USER_CHARS_MAX or not user.isascii()):
            user = hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        names = {"user": user, "address": address and network_of(address)}
        return [
            Cell(policy.key_prefix + name, policy)
            for policy in self._force.policies
            if (name := names[policy.scope]) is not None
        ]

    def _ask_local(self, requests: list[list[Cell]]) -> list[Outcome]:
        share, whole = self._force.share, self._force.whole
        mine = [[Cell(cell.key, share[cell.policy]) for cell in cells] for cells in requests]
        outcomes = self._local.check(mine, time.monotonic_ns() // 1000)
        return [o._replace(policy=whole[o.policy]) if o.policy else o for o in outcomes]

    async def _ask_redis(
        self, requests: list[list[Cell]], claims: Sequence[Claim], settled: Sequence[Settled], look: str
    ) -> Judged | None:
        started = time.monotonic()
        if started < self._resume_at:
            return None
        if self.degraded:
            self._resume_at = started + REDIS_PAUSE_S  # this batch is the one that tries; the others go on without
        try:
            judged = await _within(REDIS_WAIT_S, self._call(requests, claims, settled, look))
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
        return judged

    async def _call(
        self, requests: list[list[Cell]], claims: Sequence[Claim], settled: Sequence[Settled], look: str
    ) -> Judged:
        force = self._force
        policy_of = {key: policy for cells in requests for key, policy in cells}
        place = {key: n for n, key in enumerate(policy_of, start=3)}
        keys = [SENTINEL, POLICIES, *place]
        claimed = [
            (n, claim.fingerprint, claim.buyer, 1 if claim.wanted else 0)
            for n, claim in enumerate(claims, start=len(keys) + 1)
        ]
        keys += [CLAIM_PREFIX + claim.id for claim in claims]
        ended = [(n, each.fingerprint, each.buyer, each.how) for n, each in enumerate(settled, start=len(keys) + 1)]
        keys += [CLAIM_PREFIX + each.id for each in settled]
        if look:
            keys.append(CLAIM_PREFIX + look)
        payload = _encode(
            (
                0,
                force.wire,
                [force.place[policy] for policy in policy_of.values()],
                [[place[key] for key, _ in cells] for cells in requests],
                claimed,
                ended,
                self.owner,
                len(keys) if look else 0,
            )
        )
        try:
            answer = await self.redis.evalsha(SCRIPT_SHA, len(keys), *keys, payload)
        except NoScriptError:
            answer = await self.redis.eval(SCRIPT, len(keys), *keys, payload)
        now_us, stamp, text, looked, fields = _decode(answer)
        policies, each = list(policy_of.values()), iter(fields)
        verdicts = [
            Verdict(
                allowed == 1,
                policies[told - 3] if told else None,
                remaining,
                -(-retry_us // 1_000_000),
                False,
                _KNOWN[known],
            )
            for allowed, told, remaining, retry_us, known in zip(each, each, each, each, each, strict=True)
        ]
        self._adopt(text)
        return Judged(verdicts, stamp, now_us // 1000, read_claim(looked))


def _verdict(outcome: Outcome, *, degraded: bool) -> Verdict:
    seconds = -(-outcome.retry_us // 1_000_000)
    return Verdict(outcome.allowed, outcome.policy, outcome.remaining, seconds, degraded)


async def _within(wait_s: float, work: Coroutine[None, None, Judged]) -> Judged:
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
