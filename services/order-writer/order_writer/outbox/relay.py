"""The relay: sends what transactions left in `outbox`, and deletes exactly the rows whose records are acknowledged.

One relay at a time, by a lease row (session locks break behind transaction pooling). It selects without a cursor and
deletes ids, never a range: ids are not commit order, and a range would lose the row of a slow transaction. A relay
that outlives its lease repeats records, which is harmless.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import asyncpg
from confluent_kafka import KafkaError, KafkaException, Message

from eventlog.kafka import producer
from eventlog.producer import RenewedProducer
from order_writer.outbox.messages import Outgoing, decode_outbox
from order_writer.postgres.pool import Pool, repeat

ROWS_PER_ROUND_MAX = 32
LEASE_S = 5.0
POLL_EVERY_S = 0.05  # for what other writers left; an own commit wakes at once
SEND_S_MAX = 6.0  # longer than a record lives in the producer: every report is in
AGAIN_AFTER_S = 1.0

TAKE_LEASE = """
INSERT INTO leases (name, holder, until) VALUES ('outbox', $1, now() + $2 * interval '1 second')
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE leases.holder = excluded.holder OR leases.until < now()
RETURNING true"""
SELECT = "SELECT id, messages FROM outbox ORDER BY id LIMIT $1"
DELETE = "DELETE FROM outbox WHERE id = ANY($1::bigint[])"
_log = logging.getLogger(__name__)


class Relay:
    """Sends while it holds the lease."""

    def __init__(
        self, kafka: str, instance: str, pool: Pool, filled: asyncio.Event, heartbeat: Callable[[], None]
    ) -> None:
        self._producer = RenewedProducer(lambda: producer(kafka, partitioner="murmur2"))  # for what is placed BY_KEY
        self._instance, self._pool, self._filled, self._heartbeat = instance, pool, filled, heartbeat
        self._lease_ends = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until asked to stop."""
        await repeat(
            self.round, self._heartbeat, stopping, "sending the outbox", every_s=POLL_EVERY_S, wake=self._filled
        )

    async def round(self) -> bool:
        """Send what is there; whether there was anything, and it is ours to send."""
        rows = await self._pool.fetch(SELECT, ROWS_PER_ROUND_MAX) if await self._leased() else []
        if rows:
            acknowledged = await asyncio.to_thread(self._send, rows)
            await self._pool.execute(DELETE, acknowledged)
            if len(acknowledged) < len(rows):
                await asyncio.sleep(AGAIN_AFTER_S)
        return bool(rows)

    async def _leased(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._lease_ends:
            return True
        held = await self._pool.fetchval(TAKE_LEASE, self._instance, LEASE_S)
        self._lease_ends = now + LEASE_S / 3 if held else 0.0
        return bool(held)

    def _send(self, rows: list[asyncpg.Record]) -> list[int]:
        """Produce every message; the ids of the rows of which each one was acknowledged."""
        missing: dict[int, int] = {}

        def report(row_id: int, error: KafkaError | None, message: Message) -> None:
            if error is None:
                missing[row_id] -= 1
            else:
                _log.warning("not sent to %s: %s", message.topic(), error.str())

        for row in rows:
            messages = decode_outbox(row["messages"])
            missing[row["id"]] = len(messages)
            for message in messages:
                self._produce(message, partial(report, row["id"]))
        self._producer.flush(SEND_S_MAX)
        return [row_id for row_id, count in missing.items() if count == 0]

    def _produce(self, message: Outgoing, report: Callable[[KafkaError | None, Message], None]) -> None:
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    message.partition,
                    on_delivery=report,
                    headers=list(message.headers),
                )
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                _log.error("cannot be sent to %s: %s", message.topic, error)
                return
            else:
                return
