"""The payment provider as the order-writer sees it (a port), and the two that hold no money: `none` and `webhook`."""

from typing import Protocol

from msgspec import Struct

from order_writer.saga import Order
from stampede_schemas.identifiers import PurchaseId


class Approved(Struct, frozen=True):
    """The money is there."""


class Declined(Struct, frozen=True):
    """There will be no money; `reason` is the provider's word."""

    reason: str


class Voided(Struct, frozen=True):
    """Whatever was captured went back, and nothing will be captured any more."""


class Unknown(Struct, frozen=True):
    """No answer that means anything: ask again. Unknown is never failed."""


class Awaited(Struct, frozen=True):
    """The provider was not asked: it reports by itself, and the report comes over `order-commands`."""


Verdict = Approved | Declined | Unknown | Awaited
Answer = Verdict | Voided


class Provider(Protocol):
    """All three are idempotent by purchase. They may raise: it counts as unknown, and as the provider's failure."""

    async def authorize(self, order: Order) -> Verdict:
        """Capture the price of the order, or say why not."""

    async def query(self, order: Order) -> Verdict:
        """What became of an authorisation that must not be repeated, because the provider may have forgotten it."""

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided | Unknown | Awaited:
        """Refund what was captured, and refuse every later authorisation. `captured`: an approval was heard."""


class NoPayment:
    """Nobody pays: orders are confirmed as they are inserted, and there is nothing to return."""

    async def authorize(self, order: Order) -> Verdict:
        """Approve."""
        del order
        return Approved()

    query = authorize

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """There was no money."""
        del purchase_id, captured
        return Voided()


class Webhook:
    """Somebody else takes the money and reports: the gateway's webhook writes it to `order-commands`.

    Nobody can be asked and nobody can be told to void, but by the public events: an `OrderReleased` says that nothing
    may be taken any more, and with `refund: due` that what was taken has to go back. Such a refund stays due until
    `RefundReported` says that it was given. Where no approval was heard, there is nothing to wait for; one that comes
    later makes a refund due.
    """

    async def authorize(self, order: Order) -> Verdict:
        """Wait for the report."""
        del order
        return Awaited()

    query = authorize

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided | Awaited:
        """Nothing to give back, or the report of it has to come."""
        del purchase_id
        return Awaited() if captured else Voided()
