"""Reads from Postgres: the point to start from, rows of purchases, the installation's identity.

It writes what all gateways must agree on: the fingerprint of the identity key. Every failure to reach the database is
`Unavailable`; no caller may hang on it.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from eventlog.reader import Progress
from gateway.read_side.order_queries import COLUMNS, After, Query
from gateway.read_side.projection import Product
from gateway.read_side.purchase_memory import REJECTED_GENERATION_MAX, RememberedIds
from gateway.read_side.purchase_state import Ordered, Purchase, Rejected, Reserved
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId, WriterEpoch

CONNECTIONS_MAX = 4
STATEMENTS_KEPT_MAX = 100  # prepared, per connection
CONNECT_S_MAX = 2.0
READ_S_MAX = 1.0
SNAPSHOT_S_MAX = 30.0
RECENT_PURCHASES_MAX = 20_000
STREAM_ROWS = 10_000  # fetched at once: there may be millions
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # all its connections are taken, or its disk is full
    asyncpg.OperatorInterventionError,  # it is shutting down, starting up or has crashed
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke in the middle of a protocol step
)
# One statement is one snapshot: a missing row is missing at exactly this progress.
_ROWS = (
    "SELECT g.partition AS at, g.source_offset AS applied, p.* FROM progress g "
    "FULL JOIN (SELECT * FROM purchases WHERE purchase_id = ANY($1::text[])) p ON p.partition = g.partition"
)
_HELD = "SELECT purchase_id FROM purchases WHERE status <> 'rejected'"
# As many as the fold may remember of each partition, the oldest first.
_REJECTED = """
SELECT partition, purchase_id FROM (
  SELECT partition, purchase_id, source_offset, source_index,
         row_number() OVER (PARTITION BY partition ORDER BY source_offset DESC, source_index DESC) AS newest
  FROM purchases WHERE status = 'rejected') r
WHERE newest <= $1 ORDER BY source_offset, source_index"""


class Unavailable(Exception):
    """Postgres does not answer in time."""


class NotMigrated(Unavailable):
    """Postgres answers, but the tables are not there: nothing can be asked until they are."""


class Snapshot(NamedTuple):
    """What was applied at one instant; `progress` and `topic_ids` are by partition of decisions."""

    products: list[Product]
    purchases: list[Purchase]  # the latest, so that order events read twice are recognised by their version
    progress: dict[int, Progress]
    topic_ids: frozenset[str]


class Store:
    """A small pool that connects when first used."""

    def __init__(self, dsn: str, instance: str = "", *, pooled: bool = False) -> None:
        """`instance` is shown in pg_stat_activity; `pooled`: behind a pooler nothing is prepared for later."""
        self._dsn, self._name, self._pooled = dsn, f"gateway/{instance}"[:63], pooled
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Make the pool; no connection yet. Raises ValueError when the DSN cannot be read."""
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=CONNECT_S_MAX,
            command_timeout=READ_S_MAX,
            statement_cache_size=0 if self._pooled else STATEMENTS_KEPT_MAX,
            server_settings={"application_name": self._name},
        )

    async def close(self) -> None:
        """Drop all connections."""
        if self._pool is not None:
            self._pool.terminate()

    async def rows(self, purchase_ids: Sequence[PurchaseId]) -> tuple[dict[PurchaseId, Purchase], dict[int, int]]:
        """The rows of these purchases; and by partition the last request whose outcome was in Postgres at that instant.

        Raises Unavailable.
        """
        found = await self._fetch(_ROWS, purchase_ids)
        rows = [_purchase(row) for row in found if row["purchase_id"] is not None]
        return {row.purchase_id: row for row in rows}, {
            row["at"]: row["applied"] for row in found if row["at"] is not None
        }

    async def page(self, query: Query) -> list[tuple[Purchase, After]]:
        """Rows of a list in its order, each with where a page behind it begins. Raises Unavailable."""
        rows = await self._fetch(query.text, *query.arguments)
        return [(_purchase(row), After(row["created_at"], row["purchase_id"])) for row in rows]

    async def claim_identity(self, fingerprint: str) -> str:
        """Remember the identity key's fingerprint if none is yet; returns the one that counts. Raises Unavailable."""
        await self._fetch(
            "INSERT INTO installation (name, value) VALUES ('identity_kid', $1) ON CONFLICT (name) DO NOTHING",
            fingerprint,
        )
        rows = await self._fetch("SELECT value FROM installation WHERE name = 'identity_kid'")
        return str(rows[0]["value"])

    async def snapshot(self, ids: RememberedIds) -> Snapshot:
        """Products, latest purchases and progress, read at one instant; at the same one `ids` are filled.

        Raises Unavailable, NotMigrated.
        """
        async with self._connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            products = await connection.fetch(
                "SELECT p.*, coalesce(c.units, 0) AS confirmed FROM products p LEFT JOIN (SELECT product_id, "
                "sum(quantity) AS units FROM purchases WHERE status = 'confirmed' GROUP BY product_id) c "
                "USING (product_id)",
                timeout=SNAPSHOT_S_MAX,
            )
            progress = await connection.fetch("SELECT * FROM progress")
            latest = await connection.fetch(
                f"SELECT {COLUMNS} FROM purchases WHERE updated_at > now() - interval '10 s' "  # noqa: S608
                "ORDER BY updated_at DESC LIMIT $1",
                RECENT_PURCHASES_MAX,
                timeout=SNAPSHOT_S_MAX,
            )
            async for row in connection.cursor(_HELD, prefetch=STREAM_ROWS, timeout=SNAPSHOT_S_MAX):
                ids.add_held(row["purchase_id"])
            async for row in connection.cursor(
                _REJECTED, 2 * REJECTED_GENERATION_MAX, prefetch=STREAM_ROWS, timeout=SNAPSHOT_S_MAX
            ):
                ids.add_rejected(row["partition"], row["purchase_id"])
        return Snapshot(
            [_product(row) for row in products],
            [_purchase(row) for row in latest],
            {
                row["partition"]: Progress(
                    row["next_offset"], row["source_offset"], WriterEpoch(row["load"].strip()), row["anchor"]
                )
                for row in progress
            },
            frozenset(row["topic_id"] for row in progress),
        )

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async with self._connection() as connection:
            return await connection.fetch(query, *arguments)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator["PoolConnectionProxy[asyncpg.Record]"]:
        """One of the pool's; whatever fails on it is `Unavailable` or `NotMigrated`."""
        assert self._pool is not None
        try:
            async with self._pool.acquire(timeout=CONNECT_S_MAX) as connection:
                yield connection
        except asyncpg.UndefinedTableError:
            raise NotMigrated("the tables are not there") from None
        except _AWAY as error:
            raise Unavailable(str(error)) from None


def _ms(at: datetime | None) -> Millis | None:
    return None if at is None else Millis(round(at.timestamp() * 1000))


def _purchase(row: Any) -> Purchase:
    body = (
        PurchaseId(row["purchase_id"]),
        BuyerId(row["buyer_id"]),
        ProductId(row["product_id"]),
        row["quantity"],
        row["fingerprint"],
        Position(row["partition"], row["source_offset"], row["source_index"]),
        row["trace_id"],
    )
    sale = row["reservation_no"], row["unit_price_minor"], row["currency"]
    changed_at, version = _ms(row["updated_at"]), row["version"]
    match row["status"]:
        case "rejected":
            return Rejected(*body, row["reason"], changed_at, version)
        case "reserved":
            return Reserved(*body, *sale, changed_at, _ms(row["hold_until"]), version)
        case status:
            return Ordered(*body, status, version, row["reason"], *sale, row["refund"], changed_at)


def _product(row: Any) -> Product:
    return Product(
        ProductId(row["product_id"]),
        row["name"],
        row["unit_price_minor"],
        row["currency"],
        row["stock"],
        row["available"],
        row["per_buyer_limit"],
        row["hold_ms"],
        row["status"],
        row["opens_at_ms"],
        row["closes_at_ms"],
        int(row["confirmed"]),
    )
