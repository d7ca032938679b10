"""The composition root: one order-writer from its settings, until it is asked to stop or cannot go on."""

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from eventlog.kafka import consumer, retry_on_election, topic_ids, watermarks
from order_writer.consume import applied_through, commands
from order_writer.consume.commands import Commands
from order_writer.consume.decisions import Decisions
from order_writer.consume.progress_consumer import ProgressConsumer
from order_writer.endings import hold_expiry, product_cancellation
from order_writer.ops.health import Health
from order_writer.ops.metrics import Metrics
from order_writer.ops.spans import Spans
from order_writer.outbox.relay import Relay
from order_writer.payments.payer import Payer
from order_writer.payments.provider import Provider, provider_named
from order_writer.postgres.pool import Pool, open_pool, retry_outages, wait_or_stop
from order_writer.restore.restore_guard import ProgressGuard
from order_writer.settings import Settings
from order_writer.unit_of_work import UnitOfWork, UnitsOfWork
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS
from telemetry.ops import serve_ops
from telemetry.tracing import configure

CATCH_UP_CHECK_EVERY_S = 0.05
# Whether partitions (`$2`) of this very topic (`$1`) are not applied up to where they ended (`$3`). A consumer that is
# given a partition of another topic stops; what is broken in a stopped partition must not hold all up.
BEHIND = """
SELECT EXISTS (
  SELECT FROM unnest($2::int[], $3::bigint[]) AS e (partition, ends_at)
  LEFT JOIN progress p ON p.partition = e.partition AND p.topic_id = $1
  WHERE p.stopped IS NULL AND coalesce(p.next_offset, -1) < e.ends_at)"""
COMMANDS_BEHIND = """
SELECT EXISTS (
  SELECT FROM unnest($2::int[], $3::bigint[]) AS e (partition, ends_at)
  LEFT JOIN command_progress p ON p.partition = e.partition AND p.topic_id = $1
  WHERE coalesce(p.next_offset, -1) < e.ends_at)"""
_log = logging.getLogger(__name__)


async def run(settings: Settings, stopping: asyncio.Event, provider: Provider | None = None) -> None:
    """Run until `stopping` is set. `provider` replaces the one that the settings name.

    Raises:
        ProviderWrong, TopicsWrong, LogBroken, DatabaseWrong, KafkaException, OSError: it cannot run; the message says
            why.
    """
    paying = provider or provider_named(settings.payment, os.environ, production=settings.production)
    ids = await asyncio.to_thread(topic_ids, settings.kafka, production=settings.production)
    ends = await asyncio.to_thread(retry_on_election, partial(_ends, settings.kafka))
    guard = ProgressGuard()
    pool = await open_pool(
        settings.postgres, settings.instance, pooled=settings.postgres_pooled, on_connect=guard.on_connect
    )
    tracing = configure("order-writer", settings.instance, settings.span_file, settings.trace_sample)
    metrics = Metrics(settings.instance, tracing)
    health = Health(settings.kafka, ids, pool, metrics, stopping)
    ops = await serve_ops(
        settings.ops_host, settings.ops_port, live=health.live, ready=health.ready, registry=metrics.registry
    )
    try:
        spans = Spans(tracing)

        def committed(unit: UnitOfWork, start_ns: int) -> None:
            metrics.changed(unit)
            spans.changes(unit, start_ns)

        units = UnitsOfWork(pool, committed)
        member = (settings.kafka, settings.instance, settings.session_timeout_s, pool)
        topic_id, commands_id = ids[DECISIONS.name], ids[ORDER_COMMANDS.name]
        decisions = Decisions(units, guard, metrics, spans, unpaid=settings.payment == "none")
        heartbeat = health.heartbeat("decision consumer")
        consuming = ProgressConsumer(*member, settings.group, topic_id, decisions, heartbeat)
        applied = applied_through.AppliedThrough(settings.kafka, pool)
        async with asyncio.TaskGroup() as group:
            group.create_task(consuming.run(stopping))
            group.create_task(guard.watch(pool, stopping))
            group.create_task(health.watch())
            _log.info("running", extra={"ops_port": ops.port, "payment": settings.payment})
            group.create_task(health.loop("applied through", applied.advance, applied_through.SAMPLE_EVERY_S))
            if await _caught_up(pool, BEHIND, topic_id, ends[DECISIONS.name], health, stopping):
                heartbeat = health.heartbeat("command consumer")
                command_group = f"{settings.group}-commands"
                commanding = ProgressConsumer(*member, command_group, commands_id, Commands(units), heartbeat)
                group.create_task(commanding.run(stopping))
            if await _caught_up(pool, COMMANDS_BEHIND, commands_id, ends[ORDER_COMMANDS.name], health, stopping):
                health.forget("catching up")
                health.caught_up.set()
                _log.info("caught up")
                for loop in _endings(settings, units, paying, metrics, spans, health, stopping):
                    group.create_task(loop)
    finally:
        stopping.set()
        await ops.close()
        pool.terminate()
        tracing.close()
    _log.info("stopped")


def _endings(
    settings: Settings,
    units: UnitsOfWork,
    paying: Provider,
    metrics: Metrics,
    spans: Spans,
    health: Health,
    stopping: asyncio.Event,
) -> Iterator[Coroutine[Any, Any, None]]:
    """The loops that end reservations and publish that, once both logs are applied to where they ended at the start.

    Until then a row may be older than the decisions and commands: nothing is paid, expired or published.
    """
    limits = settings.payments_in_flight, settings.payment_timeout_s, settings.payment_horizon_s
    yield Payer(units, paying, *limits, metrics, spans, health.heartbeat("payer")).run(stopping)
    relay = Relay(settings.kafka, settings.instance, units.pool, units.outbox_filled, health.heartbeat("relay"))
    yield relay.run(stopping)
    expiry = hold_expiry.HoldExpiry(units, metrics, settings.authorize_grace_ms / 1000)
    yield health.loop("hold expiry", expiry.round, hold_expiry.SWEEP_EVERY_S)
    yield health.loop("pending commands", partial(commands.sweep_pending, units), commands.SWEEP_EVERY_S)
    cancel = partial(product_cancellation.sweep, units)
    yield health.loop("cancellations", cancel, product_cancellation.SWEEP_EVERY_S)


def _ends(kafka: str) -> dict[str, dict[int, int]]:
    """By topic and partition, where it ends."""
    with closing(consumer(kafka)) as client:
        return {
            topic.name: {n: watermarks(client, topic.name, n)[1] for n in range(topic.partitions)}
            for topic in (DECISIONS, ORDER_COMMANDS)
        }


async def _caught_up(
    pool: Pool, query: str, topic_id: str, ends: dict[int, int], health: Health, stopping: asyncio.Event
) -> bool:
    """Wait until all partitions are applied to `ends`, by any order-writer; False when asked to stop before."""
    behind = partial(pool.fetchval, query, topic_id, list(ends), list(ends.values()))
    while await retry_outages(behind, health.heartbeat("catching up"), stopping, "catching up"):
        await wait_or_stop(stopping, CATCH_UP_CHECK_EVERY_S)
    return not stopping.is_set()
