"""Ends holds whose time is over, by Postgres' clock. Nothing expires while Postgres is unavailable or behind the log.

An approval that waited in the log during an outage must not be overtaken: a hold expires only once the partition
of `order-commands` in which its approval would stand is applied beyond `hold_until`, and sweeping begins after one
grace of uninterrupted running, in which due payments are tried first. A call to the provider that began before
`hold_until` and is still open has one grace more to return; the first commit, its or this sweep's, decides.
"""

import math
import time
from datetime import UTC, datetime

from order_writer.ops.metrics import Metrics
from order_writer.saga import orders
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import ORDER_COMMANDS, partition_of

SWEEP_EVERY_S = 0.5
FROZEN_S = 4 * SWEEP_EVERY_S
HOLDS_PER_TRANSACTION_MAX = 500

APPLIED = "SELECT partition, until FROM applied WHERE topic = $1"
OVERDUE = """
SELECT p.purchase_id, p.hold_until FROM purchases p WHERE p.status = 'reserved' AND p.hold_until <= now()
  AND p.hold_until < (SELECT max(until) FROM applied WHERE topic = $3) AND (p.hold_until, p.purchase_id) > ($4, $5)
  AND NOT EXISTS (
    SELECT FROM payments y WHERE y.purchase_id = p.purchase_id AND y.state IN ('due', 'unknown')
      AND y.lease_until > now() AND y.asked_at < p.hold_until AND p.hold_until + $2 * interval '1 second' > now())
ORDER BY p.hold_until, p.purchase_id LIMIT $1"""
LOCK = """
SELECT purchase_id FROM purchases WHERE purchase_id = ANY($1::text[]) AND status = 'reserved'
ORDER BY purchase_id FOR UPDATE SKIP LOCKED"""
BEGINNING = datetime.min.replace(tzinfo=UTC), ""


class HoldExpiry:
    """Several may run at once: each takes what the others have not locked."""

    def __init__(self, units: UnitsOfWork, metrics: Metrics, grace_s: float) -> None:
        self._units, self._metrics, self._grace_s = units, metrics, grace_s
        self._since = self._last = -math.inf  # running without interruption; the last round that was finished
        self._after: tuple[datetime, str] = BEGINNING  # those that cannot end yet must not hide the ones behind them

    async def round(self) -> bool:
        """Sweep, but only after one grace without an interruption; whether to go on at once."""
        now = time.monotonic()
        if now - self._last > max(self._grace_s, FROZEN_S):  # just begun, frozen, or without a database
            self._since = now
        self._last = -math.inf  # an outage leaves it so
        more = now - self._since >= self._grace_s and await self.sweep()
        self._last = now
        return more

    async def sweep(self) -> bool:
        """Release what may end of one batch of overdue holds; whether there may be more, which is for the next call."""
        async with self._units.open() as unit:
            found = await unit.connection.fetch(APPLIED, ORDER_COMMANDS.name)
            applied = {row["partition"]: row["until"] for row in found}
            limits = (HOLDS_PER_TRANSACTION_MAX, self._grace_s, ORDER_COMMANDS.name)
            overdue = await unit.connection.fetch(OVERDUE, *limits, *self._after)
            # Only holds whose partition is applied beyond their end: in the others an approval may still be unread.
            ending = [
                row["purchase_id"]
                for row in overdue
                if (until := applied.get(partition_of(row["purchase_id"]))) is not None and row["hold_until"] < until
            ]
            locked = await unit.connection.fetch(LOCK, ending) if ending else []
            await unit.handle([(PurchaseId(row["purchase_id"]), orders.HoldExpired()) for row in locked])
        self._metrics.expired.inc(len(locked))
        more = len(overdue) == HOLDS_PER_TRANSACTION_MAX
        self._after = (overdue[-1]["hold_until"], overdue[-1]["purchase_id"]) if more else BEGINNING
        return more
