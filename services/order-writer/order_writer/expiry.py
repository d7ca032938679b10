"""Ends holds whose time is over, by Postgres' clock. Nothing expires while Postgres is away or the writer is behind.

An approval that waited while nobody was there to hear it must not be overtaken: sweeping begins after the log was
applied to the end seen at the start, and after one grace of uninterrupted running.
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

SWEEP_EVERY_S = 0.5
GRACE_S = 5.0
HOLDS_PER_TRANSACTION_MAX = 500

OVERDUE = """
SELECT purchase_id FROM purchases WHERE status = 'reserved' AND hold_until <= now()
ORDER BY hold_until LIMIT $1 FOR UPDATE SKIP LOCKED"""
_log = logging.getLogger(__name__)


class Sweeper:
    """Several may run at once: each takes what the others have not locked."""

    def __init__(self, units: Units, metrics: Metrics, beat: Callable[[], None], grace_s: float = GRACE_S) -> None:
        self._units, self._metrics, self._beat = units, metrics, beat
        self._grace_s = grace_s

    async def run(self, stopping: asyncio.Event) -> None:
        """Sweep until asked to stop."""
        running_since = last = time.monotonic()
        while not stopping.is_set():
            now = time.monotonic()
            if now - last > self._grace_s:  # frozen, or without a database
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
            overdue = await unit.connection.fetch(OVERDUE, HOLDS_PER_TRANSACTION_MAX)
            await unit.tell([(PurchaseId(row["purchase_id"]), saga.HoldExpired()) for row in overdue])
        self._metrics.expired.inc(len(overdue))
        return len(overdue) == HOLDS_PER_TRANSACTION_MAX
