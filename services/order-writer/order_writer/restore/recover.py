"""`recover`: after an older copy of Postgres was restored (or all of it was lost), before the log is applied again.

The log gives everything back but one thing: which versions of an order were published before. A row that began
again at an old version would publish its versions twice. So `recover` reads `stampede.orders` first, lifts the rows
above what it finds there, and notes down the same for rows that come back only with the log (`published`). Only then
may the partitions go on of which the group has committed more than Postgres knows.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import msgspec
from confluent_kafka import Consumer

from eventlog.kafka import consumer, read_range, topic_ids, watermarks
from eventlog.reader import LogBroken
from order_writer.outbox.messages import decode_outbox, encode_outbox
from order_writer.postgres.pool import Connection, Pool
from order_writer.restore.restore_guard import committed_offsets
from order_writer.unit_of_work import columns
from stampede_schemas.codec import decode_order_event
from stampede_schemas.topics import DECISIONS, ORDERS

EVENTS_PER_READ_MAX = 10_000
OUTBOX_ROWS_PER_READ_MAX = 500
LIFT_S_MAX = 3_600.0

REMEMBER = """
INSERT INTO published AS p (purchase_id, version)
SELECT purchase_id, max(version) FROM unnest($1::text[], $2::int[]) AS t (purchase_id, version) GROUP BY purchase_id
ON CONFLICT (purchase_id) DO UPDATE SET version = greatest(p.version, excluded.version)"""
# A row as old as its last event is that event's; an older one has lost what came after it.
LIFT = """
UPDATE purchases r SET version = p.version + 1, updated_at = now()
FROM published p WHERE r.purchase_id = p.purchase_id AND r.version < p.version"""
# What was published had ended: its payment was begun, perhaps longer ago than the provider remembers.
QUERY_ONLY = """
UPDATE payments y SET begun_at = '-infinity' FROM published p
WHERE y.purchase_id = p.purchase_id AND y.state IN ('due', 'unknown')"""
# Time went on while the copy did not: what it still holds gets the time that a new hold would have.
HOLD_ANEW = """
UPDATE purchases r SET hold_until = greatest(r.hold_until, now() + p.hold_ms * interval '1 millisecond')
FROM products p WHERE r.product_id = p.product_id AND r.status = 'reserved'"""
PUBLISHED = "SELECT purchase_id, version FROM published WHERE purchase_id = ANY($1::text[])"
OUTBOX = "SELECT id, messages FROM outbox WHERE id > $1 ORDER BY id LIMIT $2 FOR UPDATE"
GO_ON = """
INSERT INTO progress AS p (partition, next_offset, source_offset, load, anchor, topic_id, recovered_to)
SELECT t.partition, 0, -1, '', -1, $3, t.recovered_to
FROM unnest($1::int[], $2::bigint[]) AS t (partition, recovered_to)
ON CONFLICT (partition) DO UPDATE SET recovered_to = greatest(p.recovered_to, excluded.recovered_to)"""


async def recover(kafka: str, pool: Pool, group: str) -> str:
    """Make a restored database fit to go on, and describe what was done. Repeating it, also after a crash, is harmless.

    Raises:
        TopicsWrong, LogBroken, KafkaException: the log could not be read; no partition may go on yet.
    """
    ids = await asyncio.to_thread(topic_ids, kafka)
    with closing(consumer(kafka, **{"group.id": group})) as client:
        partitions = list(range(DECISIONS.partitions))
        committed = await asyncio.to_thread(committed_offsets, client, DECISIONS.name, partitions)
        events = await _remember(client, pool)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        lifted = await connection.execute(LIFT, timeout=LIFT_S_MAX)
        await connection.execute(QUERY_ONLY, timeout=LIFT_S_MAX)
        await connection.execute(HOLD_ANEW, timeout=LIFT_S_MAX)
        dropped = await _drop_what_was_sent(connection)
        await connection.execute(GO_ON, list(committed), list(committed.values()), ids[DECISIONS.name])
    return (
        f"Read {events:,} events of orders: {int(lifted.split()[-1]):,} rows were older and begin above them now, "
        f"{dropped:,} messages of the copy had been sent. The order-writers may start."
    )


async def _remember(client: Consumer, pool: Pool) -> int:
    """Store the highest version published of each order, chunk by chunk; how many events there are."""
    count, published = 0, _published(client)
    while chunk := await asyncio.to_thread(list, islice(published, EVENTS_PER_READ_MAX)):
        await pool.execute(REMEMBER, *columns(chunk, 2))
        count += len(chunk)
    return count


def _published(client: Consumer) -> Iterator[tuple[str, int]]:
    """Order and version of every event."""
    for partition in range(ORDERS.partitions):
        for message in read_range(client, ORDERS.name, partition, *watermarks(client, ORDERS.name, partition)):
            try:
                event = decode_order_event(message.value() or b"")
            except msgspec.DecodeError as error:
                raise LogBroken(
                    f"{ORDERS.name}/{partition} holds at {message.offset()} what this version cannot read ({error}): "
                    "recover with the version that wrote it"
                ) from None
            yield event.purchase_id, event.version


async def _drop_what_was_sent(connection: Connection) -> int:
    """Drop published events from the copy's outbox: sent again they would go back in version."""
    dropped, last = 0, 0
    while rows := await connection.fetch(OUTBOX, last, OUTBOX_ROWS_PER_READ_MAX):
        for row in rows:
            messages = decode_outbox(row["messages"])
            events = [decode_order_event(it.value) if it.topic == ORDERS.name else None for it in messages]
            names = [event.purchase_id for event in events if event]
            published = {found["purchase_id"]: found["version"] for found in await connection.fetch(PUBLISHED, names)}
            kept = [
                message
                for message, event in zip(messages, events, strict=True)
                if event is None or event.version > published.get(event.purchase_id, 0)
            ]
            if len(kept) < len(messages):
                dropped += len(messages) - len(kept)
                await connection.execute(
                    "UPDATE outbox SET messages = $2 WHERE id = $1", row["id"], encode_outbox(kept)
                )
        last = rows[-1]["id"]
    return dropped
