"""Play money, for demonstrations and tests: the purchase's payment method says how the provider behaves."""

import asyncio
from collections.abc import Mapping

from order_writer.payments.provider import Approved, Declined, Unknown, Verdict, Voided
from order_writer.saga.orders import Order
from payment_simulator.journal import Journal
from stampede_schemas.identifiers import PurchaseId

SLOW_S = 2.0
LATE_S = 9.0  # within a call's time (the order-writer's PAYMENT_TIMEOUT_S), but after a short hold and its grace
FLAKY_UNKNOWNS = 2
JOURNAL = "STAMPEDE_PAYMENT_JOURNAL"  # a file for the books, shared by all writers of a stack


class Simulated:
    """Keeps its own books in `journal`; what it captured and gave back can be checked against the orders.

    `ok`, `declined`, `slow` (2 s), `flaky` (unknown twice, then approved), `unknown` (takes the money and never says
    so), `late` (takes the money and says so when a short hold is over). Anything else is declined as `unknown_method`.
    """

    simulated = True

    def __init__(self, journal: Journal | None = None, slow_s: float = SLOW_S, late_s: float = LATE_S) -> None:
        self._journal, self._slow_s, self._late_s = journal or Journal(), slow_s, late_s
        self._unknowns: dict[PurchaseId, int] = {}

    async def authorize(self, order: Order) -> Verdict:
        """Behave as the method says; never capture once voided."""
        match order.payment_method:
            case "ok":
                return await self._capture(order)
            case "declined":
                return Declined("declined")
            case "slow":
                await asyncio.sleep(self._slow_s)
                return await self._capture(order)
            case "flaky":
                asked = self._unknowns.pop(order.purchase_id, 0)
                if asked >= FLAKY_UNKNOWNS:
                    return await self._capture(order)
                self._unknowns[order.purchase_id] = asked + 1
                return Unknown()
            case "unknown":
                await self._capture(order)
                return Unknown()
            case "late":
                answer = await self._capture(order)
                await asyncio.sleep(self._late_s)
                return answer
            case _:
                return Declined("unknown_method")

    async def query(self, order: Order) -> Verdict:
        """By the books."""
        return Approved() if await self._journal.holds(order.purchase_id) else Declined("not_captured")

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """Sticky."""
        del captured
        self._unknowns.pop(purchase_id, None)
        await self._journal.void(purchase_id)
        return Voided()

    async def _capture(self, order: Order) -> Verdict:
        price = order.unit_price_minor * order.quantity
        taken = await self._journal.capture(order.purchase_id, price, order.currency)
        return Approved() if taken else Declined("voided")


def simulated(environment: Mapping[str, str]) -> Simulated:
    """What `STAMPEDE_PAYMENT=simulated` names."""
    return Simulated(Journal(environment.get(JOURNAL, "")))
