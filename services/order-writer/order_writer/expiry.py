"""Ends holds whose time is over, by Postgres' clock. Nothing expires while Postgres is away or the writer is behind.

An approval that waited while nobody was there to hear it must not be overtaken: a hold expires only once every
partition of `order-commands` is applied beyond `hold_until`, and sweeping begins after one grace of uninterrupted
running, in which the provider is asked first. A call to the provider that began before `hold_until` and is still open
has one grace more to return; whoever commits first, it or this sweep, decides.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from order_writer import saga
from order_writer.database import is_outage, pause, said
from order_writer.metrics import Metrics
from order_writer.unit import Units
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import ORDER_COMMANDS

SWEEP_EVERY_S = 0.5
FROZEN_S = 4 * SWEEP_EVERY_S
HOLDS_PER_TRANSACTION_MAX = 500

OVERDUE = """
SELECT p.purchase_id FROM purchases p WHERE p.status = 'reserved' AND p.hold_until <= now()
  AND p.hold_until < (SELECT min(until) FROM applied WHERE topic = $3 HAVING count(*) = $4)
  AND NOT EXISTS (
    SELECT FROM payments y WHERE y.purchase_id = p.purchase_id AND y.state IN ('due', 'unknown')
      AND y.lease_until > now() AND y.asked_at < p.hold_until AND p.hold_until + $2 * interval '1 second' > now())
ORDER BY p.hold_until LIMIT $1 FOR UPDATE OF p SKIP LOCKED"""
_log = logging.getLogger(__name__)


class Sweeper:
    """Several may run at once: each takes what the others have not locked."""

    def __init__(self, units: Units, metrics: Metrics, beat: Callable[[], None], grace_s: float) -> None:
        self._units, self._metrics, self._beat = units, metrics, beat
        self._grace_s = grace_s

    async def run(self, stopping: asyncio.Event) -> None:
        """Sweep until asked to stop."""
        running_since = last = time.monotonic()
        while not stopping.is_set():
            now = time.monotonic()
            if now - last > max(self._grace_s, FROZEN_S):  # frozen, or without a database
                running_since = now
            last = now
            if now - running_since >= self._grace_s and not await self._swept(stopping):
                running_since = time.monotonic()
            self._beat()
            await pause(stopping, SWEEP_EVERY_S)

    async def _swept(self, stopping: asyncio.Event) -> bool:
        try:
            while not stopping.is_set() and await self.sweep():
                self._beat()
        except Exception as error:
            if not is_outage(error):
                raise
            _log.warning("holds wait for Postgres: %s", said(error))
            return False
        return True

    async def sweep(self) -> bool:
        """Release one batch of overdue holds; whether there may be more."""
        async with self._units.open() as unit:
            limits = (HOLDS_PER_TRANSACTION_MAX, self._grace_s, ORDER_COMMANDS.name, ORDER_COMMANDS.partitions)
            overdue = await unit.connection.fetch(OVERDUE, *limits)
            await unit.tell([(PurchaseId(row["purchase_id"]), saga.HoldExpired()) for row in overdue])
        self._metrics.expired.inc(len(overdue))
        return len(overdue) == HOLDS_PER_TRANSACTION_MAX
