"""The composition root: one order-writer from its settings, until it is asked to stop or cannot go on."""

import asyncio
import logging
from functools import partial

from eventlog.kafka import consumer, topic_ids, watermarks
from order_writer.commands import Commands
from order_writer.database import Pool, open_pool, pause, retry_outages
from order_writer.expiry import Sweeper
from order_writer.health import Health
from order_writer.metrics import Metrics
from order_writer.outbox import Relay
from order_writer.payer import Payer
from order_writer.payment import Provider, provider_named
from order_writer.settings import Settings
from order_writer.spans import Spans
from order_writer.unit import Unit, Units
from order_writer.writer import Writer, patiently
from stampede_schemas.topics import DECISIONS
from telemetry.ops import serve_ops
from telemetry.tracing import configure

CATCH_UP_LOOK_S = 0.05
_log = logging.getLogger(__name__)


async def run(settings: Settings, stopping: asyncio.Event, provider: Provider | None = None) -> None:
    """Run until `stopping` is set. `provider` replaces the one that the settings name.

    Raises:
        TopicsWrong, LogBroken, DatabaseWrong, KafkaException, OSError: it cannot run; the message says why.
    """
    ids = await asyncio.to_thread(topic_ids, settings.kafka)
    ends = await asyncio.to_thread(patiently, partial(_ends, settings.kafka))
    pool = await open_pool(settings.postgres, settings.instance)
    tracing = configure("order-writer", settings.instance, settings.span_file, settings.trace_sample)
    metrics = Metrics(settings.instance)
    health = Health(settings.kafka, ids[DECISIONS.name], pool, metrics)
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

        async def after_catching_up() -> None:
            # Until the log is applied, a row may say less than what was decided: nobody pays, expires or publishes.
            await _catch_up(pool, ends, health, stopping)
            paying = provider or provider_named(settings.payment)
            payer = Payer(units, paying, settings.payments_in_flight, metrics, spans, health.beat("payer"))
            commands = Commands(*member, units, metrics, health.beat("commands"))
            async with asyncio.TaskGroup() as late:
                late.create_task(payer.run(stopping))
                late.create_task(Sweeper(units, metrics, health.beat("sweeper")).run(stopping))
                late.create_task(Relay(settings.kafka, settings.instance, units, health.beat("relay")).run(stopping))
                late.create_task(commands.run(stopping))
                late.create_task(commands.sweep(stopping))

        topic_id = ids[DECISIONS.name]
        writer = Writer(*member, topic_id, units, metrics, spans, health.beat("writer"), confirm=selling_at_once)
        async with asyncio.TaskGroup() as group:
            group.create_task(writer.run(stopping))
            group.create_task(after_catching_up())
            group.create_task(health.watch(stopping))
            _log.info("running", extra={"ops_port": ops.port, "payment": settings.payment})
    finally:
        stopping.set()
        await ops.close()
        pool.terminate()
        tracing.close()
    _log.info("stopped")


def _ends(kafka: str) -> dict[int, int]:
    client = consumer(kafka)
    try:
        return {n: watermarks(client, DECISIONS.name, n)[1] for n in range(DECISIONS.partitions)}
    finally:
        client.close()


async def _catch_up(pool: Pool, ends: dict[int, int], health: Health, stopping: asyncio.Event) -> None:
    """Wait until all partitions are applied to `ends`, whoever applies them."""
    beat = health.beat("catching up")

    async def behind() -> bool:
        found = await pool.fetch("SELECT partition, next_offset, stopped FROM progress")
        reached: dict[int, int] = {row["partition"]: row["next_offset"] for row in found}
        stopped = {row["partition"] for row in found if row["stopped"]}  # what is broken there must not hold all up
        return any(reached.get(n, 0) < end for n, end in ends.items() if n not in stopped)

    while await retry_outages(behind, beat, stopping, "catching up"):
        await pause(stopping, CATCH_UP_LOOK_S)
    health.forget("catching up")
    if not stopping.is_set():
        health.caught_up.set()
        _log.info("caught up")
