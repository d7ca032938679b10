"""Asks Redis about a whole batch in one call, and this process's own buckets when Redis does not answer.

It never raises into the purchase path and never waits longer than `wait_s`; neither open nor closed while Redis is
away, but limited to this gateway's share.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from hiredis import pack_command
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.policy import Policy, network_of, parse_policies
from telemetry import names

REDIS_WAIT_S = 0.05
LAST_LOOK_S = 0.01  # the part of REDIS_WAIT_S that is granted even when the first part went by in one turn
REFRESH_S = 1.0
COMMAND_S_MAX = 1.0  # what is not on the way of a purchase may take longer
REDIS_CONNECTIONS_MAX = 32
LOCAL_KEYS_MAX = 100_000
BATCH_MAX = 500
LATE = "no answer in time"
USER_CHARS_MAX = 64  # a longer user name is counted under its hash

POLICIES = "{rl}:policies"
SCRIPT = resources.files("ratelimit").joinpath("lua/limits.lua").read_text("utf-8")
SCRIPT_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
POLICIES_SCRIPT = resources.files("ratelimit").joinpath("lua/policies.lua").read_text("utf-8")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, list[int]]).decode


class RedisUnavailable(Exception):
    """Redis did not answer a command in time."""


class Subject(NamedTuple):
    """A caller: the user's pseudonym and the client's address; policies of a missing one do not apply."""

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
    """The metrics of the limiter, in a registry of the caller's."""

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

    A call waits for one of REDIS_CONNECTIONS_MAX connections to be free. Raises ValueError when the URL cannot be read.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,
        max_connections=REDIS_CONNECTIONS_MAX,
        timeout=None,
        protocol=2,
    )
    pool.connection_class = type("PackedConnection", (_PackedInC, pool.connection_class), {})
    return Redis.from_pool(pool)


class _PackedInC:
    """How a connection writes a command; redis-py's own way for asyncio copies all it has with each word of a batch."""

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

    def cells(self, subject: Subject) -> list[Cell]:
        """Each policy that applies to a caller."""
        user, address = subject
        if user is not None and (len(user) > USER_CHARS_MAX or not user.isascii()):
            user = hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        callers = {"user": user, "address": address and network_of(address)}
        return [
            Cell(policy.key_prefix + name, policy)
            for policy in self.policies
            if (name := callers[policy.scope]) is not None
        ]


class Limiter:
    """Judges batches of requests by several policies at once; one Redis call a batch.

    `policies` are in force until Redis knows others: a change there (`change`) is a change for all processes,
    with the next `refresh`. It is to be opened first, and refreshed each second: only that ends `degraded`.
    Redis has `wait_s` to answer a batch.
    """

    def __init__(
        self,
        redis: Redis,
        policies: Sequence[Policy],
        *,
        gateways: int = 1,
        registry: CollectorRegistry | None = None,
        wait_s: float = REDIS_WAIT_S,
    ) -> None:
        self.redis = redis
        self._wait_s = wait_s
        self._gateways = gateways
        self._force = _InForce(policies, 0, "", gateways)
        self._metrics = LimiterMetrics(registry or CollectorRegistry())
        self._local = Buckets(LOCAL_KEYS_MAX)
        self._degraded = False
        self._told = ""

    @property
    def degraded(self) -> bool:
        """Whether Redis did not answer in time when last asked: then batches are judged here, without asking it."""
        return self._degraded

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
        assert len(batch) <= BATCH_MAX
        if not batch:
            return []
        force = self._force  # others may come into force while Redis is asked
        requests = [force.cells(subject) for subject in batch]
        outcomes = await self._ask_redis(force, requests)
        degraded = outcomes is None
        if outcomes is None:
            outcomes = self._ask_local(force, requests)
            self._metrics.degraded.inc(len(batch))
        allowed = sum(outcome.allowed for outcome in outcomes)
        self._metrics.allowed.inc(allowed)
        self._metrics.refused.inc(len(batch) - allowed)
        return [Verdict(o.allowed, o.policy, o.remaining, -(-o.retry_us // 1_000_000), degraded) for o in outcomes]

    async def open(self) -> None:
        """Connect, bring the script and learn the policies, if Redis is there: the first batch has no time for it."""
        with contextlib.suppress(RedisUnavailable):
            await self._command("SCRIPT", "LOAD", SCRIPT)
        await self.refresh()

    async def run(self) -> None:
        """Refresh each second until cancelled: there may be no purchase for long."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Learn which policies are in force, or give them to a Redis that lost them; and whether it answers in time.

        Takes at most COMMAND_S_MAX and never raises for Redis' sake.
        """
        try:
            async with _begun(self._keep(self._force.version, self._force.line), self._wait_s) as call:
                in_time = call.done()
                self._adopt(await call)
        except Exception as error:  # whatever is wrong with Redis now, the next refresh may find it well
            self._note(error)
        else:
            self._note(None if in_time else TimeoutError(LATE))

    async def change(self, line: str) -> int:
        """Put other policies in force, for everyone and for good; their version.

        Raises:
            ValueError: the line cannot be read. RedisUnavailable: nothing was changed, or it is not known.
        """
        parse_policies(line)
        kept = await self._keep(self._force.version, line, "change")
        self._adopt(kept)
        return int(kept.partition(" ")[0])

    async def _keep(self, version: int, line: str, how: Literal["", "change"] = "") -> str:
        kept: bytes = await self._command("EVAL", POLICIES_SCRIPT, 1, POLICIES, version, line, how)
        return kept.decode(errors="replace")

    async def _command(self, *words: str | int) -> Any:
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                return await self.redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise RedisUnavailable(f"{type(error).__name__}: {error}") from None

    def _adopt(self, kept: str) -> None:
        """Put what Redis keeps in force, if it is newer."""
        if kept == self._told:
            return
        self._told = kept
        version, _, line = kept.partition(" ")
        try:
            told = _InForce(parse_policies(line), int(version), line, self._gateways)
        except ValueError as error:
            _log.error("the limits kept in Redis cannot be read (%s): those in force stay", error)
            return
        if told.version > self._force.version:
            self._force = told
            _log.info("limits changed", extra={"version": told.version, "limits": line})

    def _note(self, error: Exception | None) -> None:
        """Whether Redis answers: tell it when it changes."""
        if error is not None and not self._degraded:
            kind = type(error).__name__
            _log.warning("Redis does not answer (%s: %s): limiting by this process's own share", kind, error)
        if error is None and self._degraded:
            _log.warning("Redis answers again")
        self._degraded = error is not None
        self._metrics.away.set(self._degraded)

    def _ask_local(self, force: _InForce, requests: list[list[Cell]]) -> list[Outcome]:
        mine = [[Cell(cell.key, force.share[cell.policy]) for cell in cells] for cells in requests]
        outcomes = self._local.check(mine, time.monotonic_ns() // 1000)
        return [o._replace(policy=force.whole[o.policy]) if o.policy else o for o in outcomes]

    async def _ask_redis(self, force: _InForce, requests: list[list[Cell]]) -> list[Outcome] | None:
        if self._degraded:
            return None
        started = time.monotonic()
        try:
            return await _in_time(self._call(force, requests), self._wait_s)
        except Exception as error:  # whatever went wrong with Redis, purchases go on
            self._note(error)
            return None
        finally:
            self._metrics.call.observe(time.monotonic() - started)

    async def _call(self, force: _InForce, requests: list[list[Cell]]) -> list[Outcome]:
        policy_of = {key: policy for cells in requests for key, policy in cells}
        place = {key: n for n, key in enumerate(policy_of, start=1)}
        payload = _encode(
            (
                0,
                force.wire,
                [force.place[policy] for policy in policy_of.values()],
                [[place[key] for key, _ in cells] for cells in requests],
            )
        )
        try:
            answer = await self.redis.evalsha(SCRIPT_SHA, len(place), *place, payload)
        except NoScriptError:
            answer = await self.redis.eval(SCRIPT, len(place), *place, payload)
        _, fields = _decode(answer)
        policies, each = [None, *policy_of.values()], iter(fields)
        return [
            Outcome(allowed == 1, policies[told], remaining, retry_us)
            for allowed, told, remaining, retry_us in zip(each, each, each, each, strict=True)
        ]


async def _in_time(work: Coroutine[None, None, _T], wait_s: float) -> _T:
    async with _begun(work, wait_s) as call:
        if not call.done():
            raise TimeoutError(LATE)
        return call.result()


@contextlib.asynccontextmanager
async def _begun(work: Coroutine[None, None, _T], wait_s: float) -> AsyncIterator[asyncio.Task[_T]]:
    """A call to Redis after it was waited for, done by then or not; cancelled at the end.

    Unlike asyncio.timeout not fooled by a pause of this process: after it the answer may lie unread, or the question
    unsent, when the time is over; hence a last look.
    """
    task = asyncio.create_task(work)
    try:
        for part_s in (wait_s - LAST_LOOK_S, LAST_LOOK_S):
            if not task.done():
                await asyncio.wait({task}, timeout=part_s)
        yield task
    finally:
        task.cancel()
