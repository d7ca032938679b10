"""Whether a running system is at rest: every request answered and applied, nothing held, owed or still to be sent.

Reads only. What is judged at rest needs no patience: what is not done then is lost.
"""

import asyncio
import time

import asyncpg

from eventlog.kafka import consumer, watermarks
from replay.live import CONNECT_S_MAX, Addresses
from stampede_schemas.topics import DECISIONS, PARTITIONS, REQUESTS, partition_of

LOOK_EVERY_S = 0.2
PROGRESS = "SELECT partition, next_offset, source_offset FROM progress"
OPEN = """
SELECT (SELECT count(*) FROM purchases WHERE status = 'reserved') AS "open holds",
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
        found = await (connection.fetch(OPEN_OF_A_PRODUCT, product_id) if product_id else connection.fetch(OPEN))
        still: dict[str, int] = dict(found[0])
    finally:
        await connection.close()
    for number, (requests, decisions) in ends.items():
        row = progress.get(number, {"next_offset": 0, "source_offset": -1})
        if row["next_offset"] < decisions:
            return f"decisions/{number} ends at {decisions}, of which {row['next_offset']} are in Postgres"
        if row["source_offset"] + 1 < requests:
            return f"requests/{number} ends at {requests}, of which {row['source_offset'] + 1} are decided"
    return ", ".join(f"{count} {what}" for what, count in still.items() if count)


async def wait(addresses: Addresses, wait_s_max: float, product_id: str = "") -> tuple[list[str], float]:
    """Wait for it: what is wrong about that, if it takes too long, and how long it took in seconds."""
    began = time.monotonic()
    while busy := await under_way(addresses, product_id):
        if time.monotonic() - began > wait_s_max:
            return [f"after {wait_s_max:.0f} s there are still: {busy}"], wait_s_max
        await asyncio.sleep(LOOK_EVERY_S)
    return [], time.monotonic() - began


def _ends(kafka: str, numbers: list[int]) -> dict[int, tuple[int, int]]:
    client = consumer(kafka)
    try:
        return {
            number: (watermarks(client, REQUESTS.name, number)[1], watermarks(client, DECISIONS.name, number)[1])
            for number in numbers
        }
    finally:
        client.close()
