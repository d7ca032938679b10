"""The payment provider as the saga sees it (a port), and two of them: `none` and `simulated`."""

import asyncio
from typing import Literal, Protocol

from msgspec import Struct

from order_writer.saga import Order
from stampede_schemas.identifiers import PurchaseId

SLOW_S = 2.0
LATE_S = 40.0  # an answer that comes when most holds are over
FLAKY_UNKNOWNS = 2


class Approved(Struct, frozen=True):
    """The money is there."""


class Declined(Struct, frozen=True):
    """There will be no money; `reason` is the provider's word."""

    reason: str


class Unknown(Struct, frozen=True):
    """No answer that means anything: ask again. Unknown is never failed."""


Answer = Approved | Declined | Unknown


class Provider(Protocol):
    """Both calls are idempotent by purchase. They may raise: that counts as unknown."""

    async def authorize(self, order: Order) -> Answer:
        """Capture the price of the order, or say why not."""

    async def void(self, purchase_id: PurchaseId) -> bool:
        """Refund what was captured, and refuse every later authorisation. False: not known to have happened."""


class NoPayment:
    """Nobody pays: orders are confirmed as they are inserted, and there is nothing to return."""

    async def authorize(self, order: Order) -> Answer:
        """Approve."""
        del order
        return Approved()

    async def void(self, purchase_id: PurchaseId) -> bool:
        """There was no money."""
        del purchase_id
        return True


class Simulated:
    """Play money, for demonstrations and tests: the purchase's payment method says how it behaves.

    `ok`, `declined`, `slow` (2 s), `flaky` (unknown twice, then approved), `unknown` (always), `late` (approved when
    the hold is over). Anything else is declined as `unknown_method`.
    """

    def __init__(self, slow_s: float = SLOW_S, late_s: float = LATE_S) -> None:
        self._slow_s, self._late_s = slow_s, late_s
        self._unknowns: dict[PurchaseId, int] = {}
        self._voided: set[PurchaseId] = set()

    async def authorize(self, order: Order) -> Answer:
        """Behave as the method says; never approve once voided."""
        if order.purchase_id in self._voided:
            return Declined("voided")
        match order.payment_method:
            case "ok":
                return Approved()
            case "declined":
                return Declined("declined")
            case "slow":
                await asyncio.sleep(self._slow_s)
                return Approved()
            case "flaky":
                return self._flaky(order.purchase_id)
            case "unknown":
                return Unknown()
            case "late":
                await asyncio.sleep(self._late_s)
                return Approved()
            case _:
                return Declined("unknown_method")

    def _flaky(self, purchase_id: PurchaseId) -> Answer:
        asked = self._unknowns.pop(purchase_id, 0)
        if asked >= FLAKY_UNKNOWNS:
            return Approved()
        self._unknowns[purchase_id] = asked + 1
        return Unknown()

    async def void(self, purchase_id: PurchaseId) -> bool:
        """Sticky."""
        self._unknowns.pop(purchase_id, None)
        self._voided.add(purchase_id)
        return True


def provider_named(name: Literal["none", "simulated"]) -> Provider:
    """The provider that the settings ask for."""
    return Simulated() if name == "simulated" else NoPayment()
