"""Health of this process: heartbeats of its loops, the last check of Postgres and Kafka."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from confluent_kafka import KafkaException, TopicCollection

from eventlog.kafka import admin_client
from eventlog.reader import LogBroken
from order_writer.ops.metrics import Metrics
from order_writer.postgres.pool import Pool, describe, is_outage, repeat, wait_or_stop
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS

CHECK_EVERY_S = 2.0
CHECK_S_MAX = 2.0
OUTBOX_S_MAX = 15.0  # longer than a lease and a round of the relay: what waits so long is not being sent
SILENT_S_MAX = 90.0  # longer than any backoff: a loop that is silent so long is stuck


class Health:
    """Updated by the loops and by `watch`; read by the ops listener, which never waits."""

    def __init__(
        self, kafka: str, topic_ids: Mapping[str, str], pool: Pool, metrics: Metrics, stopping: asyncio.Event
    ) -> None:
        self._topic_ids = {topic.name: topic_ids[topic.name] for topic in (DECISIONS, ORDER_COMMANDS)}
        self._pool, self._metrics, self._stopping = pool, metrics, stopping
        self._admin = admin_client(kafka)
        self._heartbeats: dict[str, float] = {}
        self._postgres: bool | str = "not checked yet"
        self._kafka: bool | str = "not checked yet"
        self._outbox_age_s = 0.0
        self.caught_up = asyncio.Event()

    def heartbeat(self, loop: str) -> Callable[[], None]:
        """The heartbeat of one loop, to be called each time round."""
        self._heartbeats[loop] = time.monotonic()

        def heartbeat() -> None:
            self._heartbeats[loop] = time.monotonic()

        return heartbeat

    def loop(self, name: str, work: Callable[[], Awaitable[bool | None]], every_s: float) -> Coroutine[Any, Any, None]:
        """Repeat `work`, with a heartbeat, until the process stops; see `repeat`."""
        return repeat(work, self.heartbeat(name), self._stopping, name, every_s=every_s)

    def forget(self, loop: str) -> None:
        """The loop has ended as it should."""
        self._heartbeats.pop(loop, None)

    def live(self) -> dict[str, bool | str]:
        """By loop: whether it went round not long ago."""
        now = time.monotonic()
        return {n: now - at < SILENT_S_MAX or f"silent for {now - at:.0f} s" for n, at in self._heartbeats.items()}

    def ready(self) -> dict[str, bool | str]:
        """Postgres and Kafka answer, the log is applied to where it ended at the start, and what follows is sent."""
        behind = "still applying what was decided before the start"
        waits = f"something waits for {self._outbox_age_s:.0f} s to be sent"
        return {
            "postgres": self._postgres,
            "kafka": self._kafka,
            "caught up": self.caught_up.is_set() or behind,
            "outbox": self._outbox_age_s < OUTBOX_S_MAX or waits,
        }

    async def watch(self) -> None:
        """Check both every two seconds.

        Raises:
            LogBroken: one of the topics it reads is another than at the start.
        """
        while not self._stopping.is_set():
            self._postgres, self._kafka = await asyncio.gather(self._check_postgres(), self._check_kafka())
            await wait_or_stop(self._stopping, CHECK_EVERY_S)

    async def _check_postgres(self) -> bool | str:
        try:
            async with asyncio.timeout(CHECK_S_MAX):
                waiting = await self._pool.fetchrow(
                    "SELECT (SELECT count(*) FROM outbox) AS outbox,"
                    " (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM outbox)"
                    " AS outbox_age, (SELECT count(*) FROM payments"
                    " WHERE state IN ('due', 'unknown', 'void_due')) AS payments,"
                    " (SELECT count(*) FROM payments WHERE state = 'void_due' AND captured) AS refunds,"
                    " (SELECT count(*) FROM pending_commands) AS pending,"
                    " (SELECT count(*) FROM progress WHERE stopped IS NOT NULL) AS stopped"
                )
        except Exception as error:
            if not is_outage(error):
                raise
            return f"does not answer: {describe(error)}"
        assert waiting is not None
        self._outbox_age_s = waiting["outbox_age"]
        for column, count in waiting.items():
            self._metrics.waiting[column].set(count)
        return True

    async def _check_kafka(self) -> bool | str:
        try:
            found = await asyncio.to_thread(self._describe)
        except KafkaException as error:
            return f"does not answer: {error.args[0].str()}"
        for name, topic_id in self._topic_ids.items():
            if found[name] != topic_id:
                raise LogBroken(f"topic {name} was recreated while it was read: its orders are not these")
        return True

    def _describe(self) -> dict[str, str]:
        found = self._admin.describe_topics(TopicCollection(list(self._topic_ids)), request_timeout=CHECK_S_MAX)
        return {name: str(described.result().topic_id) for name, described in found.items()}
