"""A book of many orders in Postgres, made by Postgres itself in seconds, and what a query of it really touched.

It holds what makes lists slow: one product with half of all rows, one with twenty of the oldest, a status that nearly
no row is in, a buyer with a great many, and a thousand rows to an instant.
"""

from typing import Any, NamedTuple

import asyncpg
import msgspec

from gateway.read_side.order_queries import Query

HOT_PRODUCT, RARE_PRODUCT = "shoe-hot", "shoe-rare"
EAGER_BUYER, PLAIN_BUYER = "buyer-eager", "buyer-7"
# $1, $2: the numbers of the first and the last row.
FILL = f"""
INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor,
  currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until, version, created_at,
  updated_at)
SELECT '97ee-' || md5(n::text),
       CASE WHEN n % 20 = 0 THEN '{EAGER_BUYER}' ELSE 'buyer-' || hashint8(n) % 50000 END,
       CASE WHEN n <= 20 THEN '{RARE_PRODUCT}' WHEN n % 2 = 0 THEN '{HOT_PRODUCT}' ELSE 'shoe-' || n % 1000 END,
       1, status,
       CASE status WHEN 'rejected' THEN 'sold_out' WHEN 'released' THEN 'payment_declined' END,
       CASE WHEN status <> 'rejected' THEN n END, 4200, 'EUR', 'ok', 'f0f0f0f0f0f0f0f0f0f0f0', n % 12, n, 0,
       CASE WHEN status <> 'rejected' THEN at END,
       CASE status WHEN 'rejected' THEN 1 WHEN 'reserved' THEN 2 ELSE 3 END, at, at
FROM (SELECT n, timestamptz '2026-01-01' + n / 1000 * interval '50 ms' AS at,
             CASE WHEN n <= 200 AND n % 10 = 0 THEN 'reserved' WHEN n % 50 = 0 THEN 'released'
                  WHEN n % 10 < 3 THEN 'confirmed' ELSE 'rejected' END AS status
      FROM generate_series($1::bigint, $2::bigint) AS n) AS made"""  # noqa: S608 - constants only


# Every list there is: by buyer, product, status, and what they give together; also those that find little or nothing.
LISTS: dict[str, dict[str, str]] = {
    "a buyer's own": {"buyer_id": PLAIN_BUYER},
    "a buyer's of very many": {"buyer_id": EAGER_BUYER},
    "a buyer's of one product": {"buyer_id": PLAIN_BUYER, "product_id": HOT_PRODUCT},
    "a busy buyer's in a rare status": {"buyer_id": EAGER_BUYER, "status": "reserved"},
    "all": {},
    "one product's, half of all": {"product_id": HOT_PRODUCT},
    "one product's, twenty, the oldest": {"product_id": RARE_PRODUCT},
    "no product's": {"product_id": "no-such-shoe"},
    "confirmed": {"status": "confirmed"},
    "reserved, twenty, the oldest": {"status": "reserved"},
    "one product's, released": {"product_id": HOT_PRODUCT, "status": "released"},
    "one product's, reserved, hardly any": {"product_id": HOT_PRODUCT, "status": "reserved"},
    "one product's, released, none": {"product_id": "shoe-501", "status": "released"},
}


class Touched(NamedTuple):
    """What one execution did: kinds of plan nodes, 8 KiB blocks looked at, rows read from tables, rows returned."""

    nodes: set[str]
    blocks: int
    read: int
    returned: int


async def fill(connection: asyncpg.Connection, first: int, last: int) -> None:
    """Add the rows with these numbers."""
    await connection.execute(FILL, first, last, timeout=600)


async def touched(connection: asyncpg.Connection, query: Query) -> Touched:
    """Execute the query, and tell what that took."""
    plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query.text}", *query.arguments)
    [top] = msgspec.json.decode(plan)
    nodes = list(_nodes(top["Plan"]))
    scans = [node for node in nodes if "Relation Name" in node or "Index Name" in node]
    read = sum(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) for node in scans)
    root = top["Plan"]
    return Touched(
        {node["Node Type"] for node in nodes},
        root["Shared Hit Blocks"] + root["Shared Read Blocks"],
        int(read),
        int(root["Actual Rows"]),
    )


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for part in plan.get("Plans", ()) for node in _nodes(part)]
