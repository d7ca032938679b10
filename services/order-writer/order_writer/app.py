"""The composition root: one order-writer from its settings, until it is asked to stop or cannot go on."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from eventlog.kafka import consumer, topic_ids, watermarks
from order_writer.applied import Sampler
from order_writer.command_reader import CommandReader
from order_writer.commands import Parked
from order_writer.database import Pool, open_pool, pause, retry_outages
from order_writer.expiry import Sweeper
from order_writer.health import Health
from order_writer.member import patiently
from order_writer.metrics import Metrics
from order_writer.outbox import Relay
from order_writer.payer import Payer
from order_writer.payment import Provider, provider_named
from order_writer.product_cancel import ProductCanceller
from order_writer.recovery import Known
from order_writer.settings import Settings
from order_writer.spans import Spans
from order_writer.unit import Unit, Units
from order_writer.writer import Writer
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS
from telemetry.ops import serve_ops
from telemetry.tracing import configure

CATCH_UP_LOOK_S = 0.05
# Of this very topic: whoever is given a partition of another one stops.
PROGRESS = "SELECT partition, next_offset, stopped FROM progress WHERE topic_id = $1"
COMMAND_PROGRESS = "SELECT partition, next_offset, false AS stopped FROM command_progress WHERE topic_id = $1"
_log = logging.getLogger(__name__)


async def run(settings: Settings, stopping: asyncio.Event, provider: Provider | None = None) -> None:
    """Run until `stopping` is set. `provider` replaces the one that the settings name.

    Raises:
        ProviderWrong, TopicsWrong, LogBroken, DatabaseWrong, KafkaException, OSError: it cannot run; the message says
            why.
    """
    paying = provider or provider_named(settings.payment, os.environ, production=settings.env == "prod")
    ids = await asyncio.to_thread(topic_ids, settings.kafka)
    ends = await asyncio.to_thread(patiently, partial(_ends, settings.kafka))
    known = Known()
    pool = await open_pool(settings.postgres, settings.instance, pooled=settings.postgres_pooled, meet=known.meet)
    tracing = configure("order-writer", settings.instance, settings.span_file, settings.trace_sample)
    metrics = Metrics(settings.instance, tracing)
    health = Health(settings.kafka, ids, pool, metrics)
    ops = await serve_ops(
        settings.ops_host, settings.ops_port, live=health.live, ready=health.ready, registry=metrics.registry
    )
    try:
        spans = Spans(tracing)

        def committed(unit: Unit, start_ns: int) -> None:
            metrics.changed(unit)
            spans.changes(unit, start_ns)

        units = Units(pool, committed)
        member = (settings.kafka, settings.group, settings.instance, settings.session_timeout_s)
        selling_at_once = settings.payment == "none"
        topic_id, commands_id = ids[DECISIONS.name], ids[ORDER_COMMANDS.name]
        writer = Writer(*member, topic_id, units, known, metrics, spans, health.beat("writer"), confirm=selling_at_once)
        async with asyncio.TaskGroup() as group:
            group.create_task(writer.run(stopping))
            group.create_task(health.watch(stopping))
            _log.info("running", extra={"ops_port": ops.port, "payment": settings.payment})
            group.create_task(Sampler(settings.kafka, pool, health.beat("sampler")).run(stopping))
            if await _caught_up(pool, PROGRESS, topic_id, ends[DECISIONS.name], health, stopping):
                reader = CommandReader(*member, commands_id, units, health.beat("commands"))
                group.create_task(reader.run(stopping))
            if await _caught_up(pool, COMMAND_PROGRESS, commands_id, ends[ORDER_COMMANDS.name], health, stopping):
                health.forget("catching up")
                health.caught_up.set()
                _log.info("caught up")
                for loop in _endings(settings, units, paying, metrics, spans, health):
                    group.create_task(loop(stopping))
    finally:
        stopping.set()
        await ops.close()
        pool.terminate()
        tracing.close()
    _log.info("stopped")


def _endings(
    settings: Settings, units: Units, paying: Provider, metrics: Metrics, spans: Spans, health: Health
) -> Iterator[Callable[[asyncio.Event], Coroutine[Any, Any, None]]]:
    """What ends reservations and tells of it. Not before both logs are applied to where they ended at the start.

    Until then a row may say less than what was decided and asked: nobody pays, expires or publishes.
    """
    limits = settings.payments_in_flight, settings.payment_timeout_s, settings.payment_horizon_s
    yield Payer(units, paying, *limits, metrics, spans, health.beat("payer")).run
    yield Sweeper(units, metrics, health.beat("sweeper"), settings.authorize_grace_ms / 1000).run
    yield Relay(settings.kafka, settings.instance, units, health.beat("relay")).run
    yield Parked(units, health.beat("parked commands")).run
    yield ProductCanceller(units, health.beat("cancellations")).run


def _ends(kafka: str) -> dict[str, dict[int, int]]:
    """By topic and partition, where it ends."""
    client = consumer(kafka)
    try:
        return {
            topic.name: {n: watermarks(client, topic.name, n)[1] for n in range(topic.partitions)}
            for topic in (DECISIONS, ORDER_COMMANDS)
        }
    finally:
        client.close()


async def _caught_up(
    pool: Pool, query: str, topic_id: str, ends: dict[int, int], health: Health, stopping: asyncio.Event
) -> bool:
    """Wait until all partitions are applied to `ends`, whoever applies them; False when asked to stop before."""
    beat = health.beat("catching up")

    async def behind() -> bool:
        found = await pool.fetch(query, topic_id)
        reached: dict[int, int] = {row["partition"]: row["next_offset"] for row in found}
        stopped = {row["partition"] for row in found if row["stopped"]}  # what is broken there must not hold all up
        return any(reached.get(n, -1) < end for n, end in ends.items() if n not in stopped)

    while await retry_outages(behind, beat, stopping, "catching up"):
        await pause(stopping, CATCH_UP_LOOK_S)
    return not stopping.is_set()
