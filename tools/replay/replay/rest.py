"""Whether a running system is at rest: every request answered and applied, nothing held, owed or still to be sent.

Reads only. What is judged at rest needs no patience: what is not done then is lost.
"""

import asyncio
import time

import asyncpg

from eventlog.kafka import consumer, watermarks
from replay.live import CONNECT_S_MAX, Addresses
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS, PARTITIONS, REQUESTS, partition_of

LOOK_EVERY_S = 0.2
PROGRESS = "SELECT partition, next_offset, source_offset FROM progress"
COMMANDS = "SELECT partition, next_offset FROM command_progress"
OPEN = """
SELECT (SELECT count(*) FROM purchases WHERE status = 'reserved') AS "open holds",
       (SELECT count(*) FROM product_cancellations WHERE done_at IS NULL) AS "open cancellations",
       (SELECT count(*) FROM outbox) AS "outgoing messages",
       (SELECT count(*) FROM payments WHERE state IN ('due', 'unknown', 'void_due')) AS "open payments" """
OPEN_OF_A_PRODUCT = """
SELECT count(*) FILTER (WHERE status = 'reserved') AS "open holds",
       count(*) FILTER (WHERE status = 'released' AND stock_returned_at IS NULL) AS "open releases"
FROM purchases WHERE product_id = $1"""


async def under_way(addresses: Addresses, product_id: str = "") -> str:
    """What is still on its way, everywhere or of one product, in a sentence; empty if nothing is."""
    numbers = [partition_of(product_id)] if product_id else list(range(PARTITIONS))
    ends = await asyncio.to_thread(_ends, addresses.kafka, numbers)
    connection = await asyncpg.connect(addresses.postgres, timeout=CONNECT_S_MAX)
    try:
        progress = {row["partition"]: row for row in await connection.fetch(PROGRESS)}
        handled = {row["partition"]: row["next_offset"] for row in await connection.fetch(COMMANDS)}
        found = await (connection.fetch(OPEN_OF_A_PRODUCT, product_id) if product_id else connection.fetch(OPEN))
        still: dict[str, int] = dict(found[0])
    finally:
        await connection.close()
    for number, (requests, decisions, commands) in ends.items():
        row = progress.get(number, {"next_offset": 0, "source_offset": -1})
        if row["next_offset"] < decisions:
            return f"decisions/{number} ends at {decisions}, of which {row['next_offset']} are in Postgres"
        if row["source_offset"] + 1 < requests:
            return f"requests/{number} ends at {requests}, of which {row['source_offset'] + 1} are decided"
        if not product_id and handled.get(number, 0) < commands:
            return f"order-commands/{number} ends at {commands}, of which {handled.get(number, 0)} are handled"
    return ", ".join(f"{count} {what}" for what, count in still.items() if count)


async def wait(addresses: Addresses, wait_s_max: float, product_id: str = "") -> tuple[list[str], float]:
    """Wait for it: what is wrong about that, if it takes too long, and how long it took in seconds."""
    began = time.monotonic()
    while busy := await under_way(addresses, product_id):
        if time.monotonic() - began > wait_s_max:
            return [f"after {wait_s_max:.0f} s there are still: {busy}"], wait_s_max
        await asyncio.sleep(LOOK_EVERY_S)
    return [], time.monotonic() - began


def _ends(kafka: str, numbers: list[int]) -> dict[int, list[int]]:
    """By partition, where `requests`, `decisions` and `order-commands` end."""
    client, topics = consumer(kafka), (REQUESTS.name, DECISIONS.name, ORDER_COMMANDS.name)
    try:
        return {number: [watermarks(client, topic, number)[1] for topic in topics] for number in numbers}
    finally:
        client.close()
