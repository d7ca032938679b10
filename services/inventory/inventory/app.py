"""The composition root of an inventory worker: the Faust app, its agent, and the worker they feed."""

import asyncio
import gc
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import faust
from confluent_kafka import KafkaException
from faust.types import TP
from prometheus_client import CollectorRegistry

from eventlog.kafka import TopicsUnknown, TopicsWrong, producer, topic_ids
from eventlog.reader import LogBroken
from inventory import faust_tasks
from inventory.effects import Stop
from inventory.log_reader import LogReader
from inventory.protocol import snapshot_due
from inventory.settings import Settings
from inventory.worker import Worker
from service.run import sentence_of
from service.tasks import TaskEnded, long_lived_tasks
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS
from telemetry.ops import Checks, build_registry, serve_ops
from telemetry.tracing import Tracing, configure

GROUP = "inventory"
TOPICS = (REQUESTS, DECISIONS, STOCK_SNAPSHOTS)
TOPICS_CHECK_S = 10.0
STANDSTILL_S_MAX = 15.0
DELIVERY_TIMEOUT_MS = 0  # none: a silent broker is waited for; nothing is known of a record's fate before it speaks
SETTLE_S_MAX = 2.0
LEAVE_S_MAX = 2.0
QUEUE_KIB_MAX = 256 * 1024  # of 12 partitions: 4 batches of decisions, 5 MiB of dead letters and 8 snapshot parts each

_PRODUCER = {"message.timeout.ms": DELIVERY_TIMEOUT_MS, "queue.buffering.max.kbytes": QUEUE_KIB_MAX}
_log = logging.getLogger(__name__)


class Inventory:
    """One inventory worker: build it, `run` it until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tracing: Tracing = configure("inventory", settings.instance, settings.span_file, settings.trace_sample)
        self._registry: CollectorRegistry = build_registry("inventory", settings.instance, self._tracing)
        self._was_assigned = False
        # Positions are only good for the topics they were read from; a wrong or missing topic stops us here.
        self._topic_ids = topic_ids(settings.kafka, TOPICS, production=settings.production)
        self._reader = LogReader(settings.kafka)
        self._producer = producer(settings.kafka, **_PRODUCER)
        self.faust = _faust_app(settings)
        self.worker = Worker(
            topic_ids=self._topic_ids,
            reader=self._reader,
            producer=self._producer,
            tracing=self._tracing,
            registry=self._registry,
            snapshot_due=partial(snapshot_due, decided_min=settings.snapshot_decisions_min),
            answered=self._answered,
            stop=self._stop_now,
        )
        self._attach()

    def _attach(self) -> None:
        requests = self.faust.topic(
            REQUESTS.name, key_serializer="raw", value_serializer="raw", value_type=bytes, allow_empty=True
        )

        async def decide(stream: Any) -> None:
            try:
                async for event in stream.noack().events():
                    await self.worker.deliver(event)
            except Exception as error:
                # Faust would acknowledge the record and go on; a worker that cannot decide must not.
                _log.exception("the agent failed")
                self._stop_now(Stop(repr(error)))

        async def assigned(_app: Any, assigned: Any, **_: Any) -> None:
            self._was_assigned = True
            self.worker.assigned({tp.partition for tp in assigned if tp.topic == REQUESTS.name})

        async def revoked(_app: Any, revoked: Any, **_: Any) -> None:
            self.worker.revoked({tp.partition for tp in revoked if tp.topic == REQUESTS.name})

        self.faust.agent(requests, name="decide")(decide)
        self.faust.on_partitions_assigned.connect(assigned, weak=False)  # type: ignore[arg-type]
        self.faust.on_partitions_revoked.connect(revoked, weak=False)  # type: ignore[arg-type]

    def _answered(self, partition: int, first: int, last: int) -> None:
        """Tell Faust that `[first, last]` is answered, delivered or not, or its committed offset stands still.

        Private parts of faust-streaming 0.15.3, the version we pin; an integration test notices when they go.
        """
        consumer: Any = self.faust.consumer
        tp = TP(REQUESTS.name, partition)
        known = consumer._acked_index[tp]
        new = [o for o in range(max(first, consumer._committed_offset[tp] or 0), last + 1) if o not in known]
        known.update(new)
        consumer._acked[tp].extend(new)

    async def _watch_topics(self) -> NoReturn:
        """A topic that was deleted, made again or given other partitions makes every position we hold a lie."""
        while True:
            await asyncio.sleep(TOPICS_CHECK_S)
            try:
                now = await asyncio.to_thread(topic_ids, self._settings.kafka, TOPICS)
            except TopicsUnknown:
                continue  # the broker is unavailable: it says nothing about its topics
            if now != self._topic_ids:
                raise TopicsWrong("a topic was deleted and made again while we read it: its history is gone")

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then leave in order."""
        ops = await serve_ops(
            self._settings.ops_host,
            self._settings.ops_port,
            live=self._live,
            ready=self._ready,
            routes={"/state": self._state},
            registry=self._registry,
        )
        _keep_young()
        try:
            async with long_lived_tasks() as start:
                start("serve delivery reports", self.worker.poll())
                start("find what the stream left out", self.worker.tick())
                start("watch the topics", self._watch_topics())
                await self.faust.start()
                start("watch Faust", faust_tasks.watch(self.faust))
                await stop.wait()
                await self.worker.leave(LEAVE_S_MAX)
        except (TaskEnded, TopicsWrong, LogBroken, KafkaException) as error:
            self._stop_now(Stop(sentence_of(error)))
        except Exception as error:
            _log.exception("the worker failed")
            self._stop_now(Stop(repr(error)))
        await self.faust.stop()
        self._reader.close()
        await ops.close()
        self._tracing.close()

    def _stop_now(self, stop: Stop) -> NoReturn:
        """End at once, without the order of a shutdown: a worker that is not sure must not acknowledge or commit."""
        _log.error("stopping: %s", stop.reason)
        print(f"inventory {self._settings.instance} stops: {stop.reason}", file=sys.stderr, flush=True)
        if stop.restart_cooldown:
            begin_restart_cooldown(self._settings)
        self._tracing.flush()
        os._exit(1)

    def _live(self) -> Checks:
        at, advanced = self.worker.ticked_at, self.worker.advanced
        still = [n for n in self.worker.owned if at - advanced.get(n, (0, at))[1] > STANDSTILL_S_MAX]
        return {
            "event loop": True,  # the process ends with the first of its tasks
            "progress": not still or f"partitions {sorted(still)} have requests and make no decisions",
        }

    def _ready(self) -> Checks:
        loading = [n for n in self.worker.owned if self.worker.partitions[n].phase != "deciding"]
        return {
            "assignment": self._was_assigned or "no partitions were assigned yet",
            "loaded": not loading or f"partitions {sorted(loading)} are loading",
            "kafka": self.worker.kafka,
        }

    async def _state(self, query: Any) -> object:
        """`/state?partition=N`: the digest of its table and the offset of the last request in it."""
        try:
            number = int(query["partition"])
        except (KeyError, ValueError):
            raise ValueError("ask for /state?partition=N") from None
        if number not in self.worker.owned:
            raise LookupError(number)
        protocol = self.worker.partitions[number]
        deadline = time.monotonic() + SETTLE_S_MAX
        while not protocol.drained:
            if time.monotonic() > deadline:
                raise ValueError(f"partition {number} is {protocol.phase} and busy; ask again when it is quiet")
            await asyncio.sleep(0.002)
        return {
            "partition": number,
            "source_offset": protocol.confirmed.source_offset,
            "sha256": protocol.table.digest(),
        }


def _faust_app(settings: Settings) -> faust.App:
    """Faust for what it does well: membership, assignment, the stream and commits. No tables, no web."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return faust.App(
        GROUP,
        broker=[f"kafka://{server.strip()}" for server in settings.kafka.split(",")],
        datadir=str(settings.data_dir / settings.instance),
        consumer_group_instance_id=settings.instance,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=3.0,
        broker_commit_interval=0.5,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        processing_guarantee="at_least_once",
    )


def _keep_young() -> None:
    """Full collections over millions of reservations stop the worker for 0.1 to 0.3 s, and find nothing there."""
    gc.set_threshold(50_000, 50, 1_000_000)


def _cooldown_file(settings: Settings) -> Path:
    return settings.data_dir / f"{settings.instance}.restart-cooldown-until"


def begin_restart_cooldown(settings: Settings) -> None:
    """Make the next start of this instance wait until the group has given its partitions to others."""
    _cooldown_file(settings).write_text(str(time.time() + 1.5 * settings.session_timeout_s))


def wait_for_restart_cooldown(settings: Settings) -> None:
    """Wait until the cooldown of this instance ends, if one was begun."""
    try:
        wait_s = float(_cooldown_file(settings).read_text()) - time.time()
    except (OSError, ValueError):
        return
    if 0 < wait_s <= 2 * settings.session_timeout_s:
        _log.warning("two owners fought over a partition: staying out for %.0f s", wait_s)
        time.sleep(wait_s)
