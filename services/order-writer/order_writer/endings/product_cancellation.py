"""Undoes every order of a product, some hundreds a transaction, by its reservation numbers in order.

The number reached is committed with the orders it stands for: a successor after a crash cancels none twice.
Reservations from before the cancellation that are still on their way from the log are waited for.
"""

from order_writer.saga import orders
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import DECISIONS, partition_of

ORDERS_PER_TRANSACTION_MAX = 300
OPEN_MAX = 100
SWEEP_EVERY_S = 1.0

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
        product_id = open_["product_id"]
        where = (DECISIONS.name, partition_of(product_id), open_["asked_at"])
        complete = await unit.connection.fetchval(APPLIED, *where)  # before the orders are queried
        limits = (product_id, open_["reached"], ORDERS_PER_TRANSACTION_MAX)
        found = await unit.connection.fetch(ORDERS, *limits)
        cancel = orders.CancelAsked("operator")
        await unit.handle([(PurchaseId(row["purchase_id"]), cancel) for row in found])
        more = len(found) == ORDERS_PER_TRANSACTION_MAX
        reached = found[-1]["reservation_no"] if found else 0
        done = bool(complete) and not more
        await unit.connection.execute(REACHED, request_id, reached, len(found), done)
    return more
