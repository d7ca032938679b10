"""What the gateway reads from Postgres: the point to start from, rows of purchases, the installation's identity.

It writes what all gateways must agree on: the fingerprint of the identity key, and which Redis is believed. Every
failure to reach the database is `Away`; no caller may hang on it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from eventlog.reader import Progress
from gateway.orders_sql import After, Query
from gateway.projection import Product, Purchase
from stampede_schemas.identifiers import BuyerId, Load, Millis, Position, ProductId, PurchaseId

CONNECTIONS_MAX = 4
STATEMENTS_KEPT_MAX = 100  # prepared, per connection
CONNECT_S_MAX = 2.0
READ_S_MAX = 1.0
SNAPSHOT_S_MAX = 30.0
RECENT_PURCHASES_MAX = 20_000
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # all its connections are taken, or its disk is full
    asyncpg.OperatorInterventionError,  # it is shutting down, starting up or has crashed
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke in the middle of a protocol step
)
_COLUMNS = (
    "purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency, "
    "fingerprint, partition, source_offset, source_index, hold_until, refund, trace_id, version, updated_at"
)


class Away(Exception):
    """Postgres does not answer in time."""


class NotMigrated(Exception):
    """Postgres answers, but the tables are not there."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the order-writer had applied at one instant; `progress` and `topic_ids` are by partition of decisions."""

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

    async def purchase(self, purchase_id: str) -> Purchase | None:
        """The row of a purchase. Raises Away."""
        rows = await self._fetch(
            f"SELECT {_COLUMNS} FROM purchases WHERE purchase_id = $1",  # noqa: S608 - constants only
            purchase_id,
        )
        return _purchase(rows[0]) if rows else None

    async def fingerprints(self, purchase_ids: list[str]) -> dict[str, str]:
        """Which of these purchases have a row, and with what body they were made. Raises Away."""
        rows = await self._fetch(
            "SELECT purchase_id, fingerprint FROM purchases WHERE purchase_id = ANY($1)", purchase_ids
        )
        return {row["purchase_id"]: row["fingerprint"] for row in rows}

    async def page(self, query: Query) -> list[tuple[Purchase, After]]:
        """Rows of a list in its order, each with where a page behind it begins. Raises Away."""
        rows = await self._fetch(query.text, *query.arguments)
        return [(_purchase(row), After(row["created_at"], row["purchase_id"])) for row in rows]

    async def claim_identity(self, fingerprint: str) -> str:
        """Remember the identity key's fingerprint if none is yet; returns the one that counts. Raises Away."""
        await self._fetch(
            "INSERT INTO installation (name, value) VALUES ('identity_kid', $1) ON CONFLICT (name) DO NOTHING",
            fingerprint,
        )
        rows = await self._fetch("SELECT value FROM installation WHERE name = 'identity_kid'")
        return str(rows[0]["value"])

    async def installation(self, name: str) -> str | None:
        """What is kept under a name for all gateways; None: nothing ever was. Raises Away."""
        rows = await self._fetch("SELECT value FROM installation WHERE name = $1", name)
        return str(rows[0]["value"]) if rows else None

    async def replace_installation(self, name: str, old: str | None, new: str) -> None:
        """Keep `new` there if it is still `old` (None: nothing) that is kept. Raises Away."""
        if old is None:
            await self._fetch(
                "INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, new
            )
        else:
            await self._fetch("UPDATE installation SET value = $3 WHERE name = $1 AND value = $2", name, old, new)

    async def applied(self) -> dict[int, int]:
        """By partition, the last request of which Postgres holds the outcome. Raises Away."""
        rows = await self._fetch("SELECT partition, source_offset FROM progress")
        return {row["partition"]: row["source_offset"] for row in rows}

    async def snapshot(self) -> Snapshot:
        """Products, latest purchases and progress, read at one instant. Raises Away, NotMigrated."""
        assert self._pool is not None
        try:
            async with (
                self._pool.acquire(timeout=CONNECT_S_MAX) as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                products = await connection.fetch(
                    "SELECT p.*, coalesce(c.units, 0) AS confirmed FROM products p LEFT JOIN (SELECT product_id, "
                    "sum(quantity) AS units FROM purchases WHERE status = 'confirmed' GROUP BY product_id) c "
                    "USING (product_id)",
                    timeout=SNAPSHOT_S_MAX,
                )
                progress = await connection.fetch("SELECT * FROM progress")
                latest = await connection.fetch(
                    f"SELECT {_COLUMNS} FROM purchases WHERE updated_at > now() - interval '10 s' "  # noqa: S608
                    "ORDER BY updated_at DESC LIMIT $1",
                    RECENT_PURCHASES_MAX,
                    timeout=SNAPSHOT_S_MAX,
                )
        except asyncpg.UndefinedTableError:
            raise NotMigrated from None
        except _AWAY as error:
            raise Away(str(error)) from None
        return Snapshot(
            [_product(row) for row in products],
            [_purchase(row) for row in latest],
            {
                row["partition"]: Progress(
                    row["next_offset"], row["source_offset"], Load(row["load"].strip()), row["anchor"]
                )
                for row in progress
            },
            frozenset(row["topic_id"] for row in progress),
        )

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        assert self._pool is not None
        try:
            async with self._pool.acquire(timeout=CONNECT_S_MAX) as connection:
                return await connection.fetch(query, *arguments)
        except asyncpg.UndefinedTableError:
            raise NotMigrated from None
        except _AWAY as error:
            raise Away(str(error)) from None


def _ms(at: datetime | None) -> Millis | None:
    return None if at is None else Millis(round(at.timestamp() * 1000))


def _purchase(row: Any) -> Purchase:
    return Purchase(
        PurchaseId(row["purchase_id"]),
        BuyerId(row["buyer_id"]),
        ProductId(row["product_id"]),
        row["quantity"],
        row["fingerprint"],
        row["status"],
        row["version"],
        row["reason"],
        row["reservation_no"],
        row["unit_price_minor"],
        row["currency"],
        Position(row["partition"], row["source_offset"], row["source_index"]),
        _ms(row["hold_until"]),
        row["refund"],
        row["trace_id"],
        changed_at_ms=_ms(row["updated_at"]),
    )


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
