"""Undoes the orders of a product that a cancellation means, some hundreds a transaction, in order of their numbers.

It means the reservations whose requests stand below the place that the command carries, and no other, however late it
is read: a product may be on sale again by then. Those that are still to be decided or applied are waited for. The
number reached is committed with the orders it stands for: a successor after a crash cancels none twice.
"""

from order_writer.saga import orders
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import partition_of

ORDERS_PER_TRANSACTION_MAX = 300
OPEN_MAX = 100
SWEEP_EVERY_S = 1.0

OPEN = "SELECT request_id FROM product_cancellations WHERE done_at IS NULL ORDER BY asked_at LIMIT $1"
TAKE = """
SELECT product_id, reached, requests_end FROM product_cancellations WHERE request_id = $1 AND done_at IS NULL
FOR UPDATE SKIP LOCKED"""
APPLIED = "SELECT source_offset + 1 >= $2 FROM progress WHERE partition = $1"
ORDERS = """
SELECT purchase_id, reservation_no FROM purchases
WHERE product_id = $1 AND reservation_no > $2 AND source_offset < $3 AND status IN ('reserved', 'confirmed')
ORDER BY reservation_no LIMIT $4"""
REACHED = """
UPDATE product_cancellations SET reached = greatest(reached, $2), cancelled = cancelled + $3,
       done_at = CASE WHEN $4 THEN now() END
WHERE request_id = $1"""


async def sweep(units: UnitsOfWork) -> bool:
    """One batch of the oldest cancellation that has one to do; whether there may be more now.

    Several sweeps may run at once: each takes what the others have not locked.
    """
    for row in await units.pool.fetch(OPEN, OPEN_MAX):
        if await batch(units, row["request_id"]):
            return True
    return False


async def batch(units: UnitsOfWork, request_id: str) -> bool:
    """One transaction; whether there may be more now."""
    async with units.open() as unit:
        open_ = await unit.connection.fetchrow(TAKE, request_id)
        if open_ is None:
            return False  # done, or another order-writer has locked it
        product_id, end = open_["product_id"], open_["requests_end"]
        # Before the orders are queried.
        complete = await unit.connection.fetchval(APPLIED, partition_of(product_id), end)
        limits = (product_id, open_["reached"], end, ORDERS_PER_TRANSACTION_MAX)
        found = await unit.connection.fetch(ORDERS, *limits)
        cancel = orders.CancelAsked("operator", end)
        await unit.handle([(PurchaseId(row["purchase_id"]), cancel) for row in found])
        more = len(found) == ORDERS_PER_TRANSACTION_MAX
        reached = found[-1]["reservation_no"] if found else 0
        done = bool(complete) and not more
        await unit.connection.execute(REACHED, request_id, reached, len(found), done)
    return more
