"""The composition root: puts the parts together, starts them in order, stops them in reverse. Holds no rule of its own.

Nothing connects at import, and two gateways can live in one process.
"""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.types import ASGIApp

from eventlog.kafka import producer, topic_ids
from eventlog.producer import RenewedProducer
from gateway.admission.batcher import RequestBatcher
from gateway.admission.command_producer import Commands
from gateway.admission.sale_gate import SaleGate
from gateway.api.app_factory import Parts, buyers_app, operators_app
from gateway.api.buy import PurchaseEndpoint
from gateway.api.sse import SaleFeed, Streams
from gateway.auth.authenticator import authenticator
from gateway.auth.client_address import parse_proxies
from gateway.http.asgi import BodyLimit
from gateway.http.health import Probes
from gateway.http.load_shedding import EventLoopLag, StatusReads
from gateway.http.server import Listener
from gateway.metrics import Metrics
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.follower import Follower, Waiters
from gateway.read_side.freshness import EndQueries
from gateway.read_side.lookup import Lookup
from gateway.read_side.postgres import NotMigrated, Snapshot, Store, Unavailable
from gateway.read_side.projection import Projection
from gateway.settings import Settings
from ratelimit.limiter import Limiter, connect
from ratelimit.policy import parse_policies
from service.tasks import Start, long_lived_tasks
from stampede_schemas.topics import DECISIONS, ORDERS, REQUESTS
from telemetry.ops import Checks, Ops, build_registry
from telemetry.tracing import configure

CATCH_UP_S_MAX = 600.0
DRAIN_S = 3.0
UNREADY_S = 1.0
DRAIN_LOOK_S = 0.05
_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """A dependency or a setting is wrong; the message is one sentence saying which and what to do."""


class Gateway:
    """One gateway. `run` returns after `stopping` is set and everything accepted has been answered."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.ports: dict[str, int] = {}
        self.started = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping` is set; then become unready, answer what was accepted, and end.

        Raises:
            CannotStart: a dependency or a setting is wrong.
            LogBroken: the log is not what it was.
        """
        self._stopping, settings = stopping, self._settings
        self._who = who = authenticator(
            settings.auth, production=settings.production, host=settings.http_host, tokens=settings.tokens
        )
        try:
            identity, webhook_secrets = settings.identity(), settings.webhook_secrets()
        except (ValueError, OSError) as error:
            raise CannotStart(str(error)) from None
        tracing = configure("gateway", settings.instance, settings.span_file, settings.trace_sample)
        registry = build_registry("gateway", settings.instance, tracing)
        metrics = Metrics(registry)
        projection, waiters, clock = Projection(), Waiters(), BrokerClock()
        store = Store(settings.postgres.get_secret_value(), settings.instance, pooled=settings.postgres_pooled)
        redis = connect(settings.redis.get_secret_value())
        ends = EndQueries(settings.kafka)
        self._follower = follower = Follower(settings.kafka, projection, waiters, clock, ends)
        limiter = Limiter(redis, parse_policies(settings.limits), gateways=settings.gateways, registry=registry)
        log = _producer(settings, settings.instance, **{"linger.ms": 1})
        lookup = Lookup(projection, waiters, store, identity, follower.freshness)
        gate = SaleGate(projection, clock)
        self._batcher = RequestBatcher(
            log, limiter, gate, lookup, projection.memory, follower.freshness, waiters, clock, metrics
        )
        _show(follower, metrics)
        commands = Commands(_producer(settings, f"{settings.instance}-commands"))
        streams, sale = Streams(), SaleFeed(projection, clock)
        parts = Parts(projection, waiters, clock, store, lookup, identity, who, self._batcher, commands, streams, sale)
        buyers = buyers_app(parts, webhook_secrets, Probes(self._live, self._started, self._ready))
        lag = EventLoopLag(metrics.loop_lag)
        rest = StatusReads(BodyLimit(buyers), lag, metrics.reads_shed, settings.reads_max)
        endpoint = PurchaseEndpoint(
            rest, identity, who, lookup, self._batcher, tracing, metrics, parse_proxies(settings.trusted_proxies)
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(tracing.close)
            stack.push_async_callback(redis.aclose)
            await store.open()
            stack.push_async_callback(store.close)
            ops = await self._ops(Ops(self._live, self._ready, {}, registry))
            stack.push_async_callback(ops.close)
            stack.push_async_callback(follower.close)
            await self._start_follower(follower, store, projection, identity.fingerprint)
            await limiter.open()
            start = await stack.enter_async_context(long_lived_tasks())
            for name, work in self._long_lived(ends, commands, limiter, lag, sale).items():
                start(name, work)
            stack.push_async_callback(self._batcher.drain)
            http = await stack.enter_async_context(
                self._serving(start, "http", settings.http_host, settings.http_port, endpoint)
            )
            operators = BodyLimit(operators_app(parts, settings.admin_key_sha256))
            admin = await stack.enter_async_context(
                self._serving(start, "admin", settings.admin_host, settings.admin_port, operators)
            )
            await self._serve_until_stopped(follower)
            streams.close()
            await _drain(http, admin)

    def _long_lived(
        self, ends: EndQueries, commands: Commands, limiter: Limiter, lag: EventLoopLag, sale: SaleFeed
    ) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "follow the log": self._follower.run(),
            "probe where decisions end": self._follower.probe(),
            "keep views fresh": self._follower.freshness.run(),
            "query ends of partitions": ends.run(),
            "batch requests": self._batcher.run(),
            "serve reports of requests": self._batcher.serve_reports(),
            "serve reports of commands": commands.run(),
            "keep limits fresh": limiter.run(),
            "keep keys fresh": self._who.run(),
            "measure the event loop": lag.run(),
            "make frames of the sale": sale.run(),
        }

    async def _serve_until_stopped(self, follower: Follower) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in (self._stopping, follower.caught_up)]
        try:
            if not (await asyncio.wait(waiting, timeout=CATCH_UP_S_MAX, return_when=asyncio.FIRST_COMPLETED))[0]:
                raise CannotStart(f"the decisions were not read to their end within {CATCH_UP_S_MAX:.0f} s")
            if not self._stopping.is_set():
                # What exists now lives as long as the process: the collector need not walk it again and again. Nor
                # purchases without cycles after each 700 of them: that was a tenth of what a purchase costs.
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 20, 20)
                self.started.set()
                _log.info("ready", extra={"ports": self.ports})
                await self._stopping.wait()
        finally:
            self._stopping.set()
            for task in waiting:
                task.cancel()

    async def _start_follower(self, follower: Follower, store: Store, projection: Projection, fingerprint: str) -> None:
        ids = await asyncio.to_thread(
            topic_ids, self._settings.kafka, (REQUESTS, DECISIONS, ORDERS), production=self._settings.production
        )
        await follower.open()
        snapshot = await self._snapshot(store, projection, fingerprint)
        if snapshot is None:
            await follower.start({})
            return
        if snapshot.topic_ids - {ids[DECISIONS.name]}:
            raise CannotStart(
                f"topic {DECISIONS.name} was recreated since Postgres last followed it: "
                "restore the topic, or start with an empty database"
            )
        projection.restore(snapshot.products, snapshot.purchases)
        await follower.start(snapshot.progress)

    async def _snapshot(self, store: Store, projection: Projection, fingerprint: str) -> Snapshot | None:
        try:
            if await store.claim_identity(fingerprint) != fingerprint:
                raise CannotStart(
                    "this gateway makes other purchase ids than the installation was started with: its identity key or "
                    "the form of its ids differs; give every gateway the same STAMPEDE_IDENTITY_KEY and version"
                )
            return await store.snapshot(projection.memory.ids)
        except NotMigrated:
            raise CannotStart("Postgres has no tables yet: run `python -m order_writer migrate`") from None
        except Unavailable as error:
            _log.warning("Postgres is unavailable (%s): folding the decisions from the beginning", error)
            return None

    async def _ops(self, ops: Ops) -> Ops:
        try:
            await ops.start(self._settings.ops_host, self._settings.ops_port)
        except OSError as error:
            raise _port_taken("STAMPEDE_OPS_PORT", self._settings.ops_port, error) from None
        self.ports["ops"] = ops.port
        return ops

    @contextlib.asynccontextmanager
    async def _serving(self, start: Start, name: str, host: str, port: int, app: ASGIApp) -> AsyncIterator[Listener]:
        try:
            listener = Listener(app, host, port, self._settings.request_s_max)
        except OSError as error:
            raise _port_taken(f"STAMPEDE_{name.upper()}_PORT", port, error) from None
        self.ports[name] = listener.port
        ended = asyncio.Event()

        async def serve() -> None:
            try:
                await listener.serve()
            finally:
                ended.set()
            if self._stopping.is_set():
                await asyncio.Event().wait()  # it was closed in order

        start(f"serve {name}", serve())
        try:
            yield listener
        finally:
            listener.close()
            await ended.wait()

    def _started(self) -> Checks:
        return {"projection": self._follower.caught_up.is_set() or "the decisions are still being read"}

    def _live(self) -> Checks:
        return {"event loop": True}  # the process ends with the first of its tasks

    def _ready(self) -> Checks:
        lost = not all(self._follower.at_end(partition) for partition in range(DECISIONS.partitions))
        return {
            "stopping": not self._stopping.is_set() or "the gateway is stopping",
            "projection": self._follower.caught_up.is_set() or "the decisions are still being read",
            "decisions": not lost or "the end of the decisions was not seen for a second",
            "log": self._batcher.healthy,
            "identity": self._who.healthy,
        }


def _producer(settings: Settings, name: str, **more: int) -> RenewedProducer:
    return RenewedProducer(lambda: producer(settings.kafka, **{"client.id": name}, **more))


def _show(follower: Follower, metrics: Metrics) -> None:
    metrics.lost.set_function(lambda: follower.lost)
    metrics.lag.set_function(lambda: follower.lag)
    metrics.fenced.set_function(lambda: follower.fenced)


async def _drain(*listeners: Listener) -> None:
    """Answer new requests, each as the last one of its connection, until no client is connected or DRAIN_S is over.

    Load balancers learn of it from readiness, and have UNREADY_S for it however few clients there are.
    """
    for listener in listeners:
        listener.drain()
    over = time.monotonic() + DRAIN_S
    await asyncio.sleep(UNREADY_S)
    while any(listener.connections for listener in listeners) and time.monotonic() < over:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(DRAIN_LOOK_S)
    for listener in listeners:
        listener.close()


def _port_taken(setting: str, port: int, error: OSError) -> CannotStart:
    return CannotStart(f"cannot listen on port {port} ({error.strerror}): is it in use? Choose another with {setting}")
