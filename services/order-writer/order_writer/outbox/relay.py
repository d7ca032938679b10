"""The relay: sends what transactions left in `outbox`, and deletes exactly the rows whose records are acknowledged.

One relay at a time, by a lease row (session locks break behind transaction pooling). It selects without a cursor and
deletes ids, never a range: ids are not commit order, and a range would lose the row of a slow transaction. A relay
that outlives its lease repeats records, which is harmless.

What fails is passed over for some seconds, so that it holds up nothing: a row keeps the messages that are still to be
sent. A release or an order event is never given up; a dead letter that is too large is cut.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import asyncpg
from confluent_kafka import KafkaError, KafkaException, Message

from eventlog.kafka import producer
from eventlog.producer import RenewedProducer
from order_writer.outbox.messages import Outgoing, cut, decode_outbox, encode_outbox
from order_writer.postgres.pool import Pool, repeat
from stampede_schemas.topics import DEAD_LETTERS

ROWS_PER_ROUND_MAX = 32
LEASE_S = 5.0
POLL_EVERY_S = 0.05  # for what other writers left; an own commit wakes at once
SEND_S_MAX = 6.0  # longer than a record lives in the producer: every report is in
AGAIN_AFTER_S = 5.0  # what failed; of ten thousand such rows two thousand a second are tried, in some 60 rounds

TAKE_LEASE = """
INSERT INTO leases (name, holder, until) VALUES ('outbox', $1, now() + $2 * interval '1 second')
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE leases.holder = excluded.holder OR leases.until < now()
RETURNING true"""
SELECT = "SELECT id, messages FROM outbox WHERE id <> ALL($2::bigint[]) ORDER BY id LIMIT $1"
# Each relay that holds a row writes back what it has no acknowledgement for: a message leaves once it is acknowledged.
KEEP = "UPDATE outbox SET messages = $2 WHERE id = $1"
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
        self._passed_over: dict[int, float] = {}  # rows that failed, and until when

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until asked to stop."""
        await repeat(
            self.round, self._heartbeat, stopping, "sending the outbox", every_s=POLL_EVERY_S, wake=self._filled
        )

    async def round(self) -> bool:
        """Send what is there; whether there was anything, and it is ours to send."""
        now = asyncio.get_running_loop().time()
        self._passed_over = {row_id: until for row_id, until in self._passed_over.items() if until > now}
        taken = (ROWS_PER_ROUND_MAX, list(self._passed_over))
        rows = await self._pool.fetch(SELECT, *taken) if await self._leased() else []
        if rows:
            left = await asyncio.to_thread(self._send, rows)
            await self._pool.execute(DELETE, [row_id for row_id, messages in left.items() if not messages])
            for row in (row for row in rows if left[row["id"]]):
                self._passed_over[row["id"]] = now + AGAIN_AFTER_S
                if (value := encode_outbox(left[row["id"]])) != row["messages"]:
                    await self._pool.execute(KEEP, row["id"], value)
        return bool(rows)

    async def _leased(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._lease_ends:
            return True
        held = await self._pool.fetchval(TAKE_LEASE, self._instance, LEASE_S)
        self._lease_ends = now + LEASE_S / 3 if held else 0.0
        return bool(held)

    def _send(self, rows: list[asyncpg.Record]) -> dict[int, list[Outgoing]]:
        """Produce every message; by row, those that were not acknowledged."""
        left: dict[int, dict[int, Outgoing]] = {}

        def report(row_id: int, index: int, error: KafkaError | None, _message: Message | None) -> None:
            message = left[row_id][index]
            if error is None:
                del left[row_id][index]
                return
            _log.warning("not sent to %s: %s", message.topic, error.str())
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and message.topic == DEAD_LETTERS.name:
                left[row_id][index] = cut(message)

        for row in rows:
            messages = decode_outbox(row["messages"])
            left[row["id"]] = dict(enumerate(messages))
            for index, message in enumerate(messages):
                self._produce(message, partial(report, row["id"], index))
        self._producer.flush(SEND_S_MAX)
        return {row_id: list(messages.values()) for row_id, messages in left.items()}

    def _produce(self, message: Outgoing, report: Callable[[KafkaError | None, Message | None], None]) -> None:
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
                report(error.args[0], None)
                return
            else:
                return
