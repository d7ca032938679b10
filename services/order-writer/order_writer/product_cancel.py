"""Undoes every order of a product, some hundreds a transaction, by its reservation numbers in order.

The number reached is committed with the orders it stands for: whoever goes on after a crash tells none twice. What was
reserved before the cancellation was heard, but is still on its way from the log, is waited for.
"""

import asyncio
from collections.abc import Callable

from order_writer import saga
from order_writer.database import pause, retry_outages
from order_writer.unit import Units
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import DECISIONS, partition_of

ORDERS_PER_TRANSACTION_MAX = 300
OPEN_MAX = 100
LOOK_EVERY_S = 1.0

OPEN = "SELECT request_id FROM product_cancellations WHERE done_at IS NULL ORDER BY asked_at LIMIT $1"
TAKE = """
SELECT product_id, reached, asked_at FROM product_cancellations WHERE request_id = $1 AND done_at IS NULL
FOR UPDATE SKIP LOCKED"""
APPLIED = "SELECT until > $3 FROM applied WHERE topic = $1 AND partition = $2"
ORDERS = """
SELECT purchase_id, reservation_no FROM purchases
WHERE product_id = $1 AND reservation_no > $2 AND status IN ('reserved', 'confirmed')
ORDER BY reservation_no LIMIT $3"""
REACHED = """
UPDATE product_cancellations SET reached = greatest(reached, $2), cancelled = cancelled + $3,
       done_at = CASE WHEN $4 THEN now() END
WHERE request_id = $1"""


class ProductCanceller:
    """Several may run at once: each takes what the others have not locked."""

    def __init__(self, units: Units, beat: Callable[[], None]) -> None:
        self._units, self._beat = units, beat

    async def run(self, stopping: asyncio.Event) -> None:
        """Look each second until asked to stop."""
        while not stopping.is_set():
            await retry_outages(lambda: self.sweep(stopping), self._beat, stopping, "cancelling products")
            await pause(stopping, LOOK_EVERY_S)

    async def sweep(self, stopping: asyncio.Event) -> None:
        """Go on with each open cancellation as far as there are orders."""
        for row in await self._units.pool.fetch(OPEN, OPEN_MAX):
            while not stopping.is_set() and await self.batch(row["request_id"]):
                self._beat()

    async def batch(self, request_id: str) -> bool:
        """One transaction; whether there may be more now."""
        async with self._units.open() as unit:
            open_ = await unit.connection.fetchrow(TAKE, request_id)
            if open_ is None:
                return False  # done, or somebody else is at it
            product_id = open_["product_id"]
            where = (DECISIONS.name, partition_of(product_id), open_["asked_at"])
            complete = await unit.connection.fetchval(APPLIED, *where)  # before the orders are looked for
            limits = (product_id, open_["reached"], ORDERS_PER_TRANSACTION_MAX)
            found = await unit.connection.fetch(ORDERS, *limits)
            asked = saga.CancelAsked("operator")
            await unit.tell([(PurchaseId(row["purchase_id"]), asked) for row in found])
            more = len(found) == ORDERS_PER_TRANSACTION_MAX
            reached = found[-1]["reservation_no"] if found else 0
            done = bool(complete) and not more
            await unit.connection.execute(REACHED, request_id, reached, len(found), done)
        return more
