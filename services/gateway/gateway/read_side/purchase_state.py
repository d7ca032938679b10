"""The states of one purchase as a gateway knows it. Pure; `purchase_memory.py` makes them and merges two into one."""

from typing import ClassVar, Literal, assert_never

from msgspec import Struct

from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId

REJECTED_VERSION = 1
RESERVED_VERSION = 2
PurchaseStatus = Literal["pending", "reserved", "confirmed", "rejected", "released"]


class _Purchase(Struct, frozen=True, gc=False):
    """The part that all states with a body share. `position` is that of the request which the state is about."""

    purchase_id: PurchaseId
    buyer_id: BuyerId
    product_id: ProductId
    quantity: int
    fingerprint: str  # empty in the state of an order event: events carry none
    position: Position
    trace_id: str | None


class Accepted(_Purchase, frozen=True, gc=False):
    """This gateway holds the log's acknowledgement, since `since_s` of its own clock; nothing is decided."""

    since_s: float
    status: ClassVar[PurchaseStatus] = "pending"
    version: ClassVar[int] = 0


class Answered(Struct, frozen=True, gc=False):
    """The log ignored a request of this purchase because of what came before this gateway's memory: the row shows it.

    `position` is that of the first answer; of the ignored request itself where the product is `retired`, so that the
    fold had forgotten whether there was an answer. `mine` is what this gateway had accepted, if it had.
    """

    purchase_id: PurchaseId
    position: Position
    retired: bool = False
    mine: Accepted | None = None
    status: ClassVar[PurchaseStatus] = "pending"
    version: ClassVar[int] = 0
    fingerprint: ClassVar[str] = ""


class Rejected(_Purchase, frozen=True, gc=False):
    """The log said no; it holds for as long as the fold remembers it."""

    reason: str | None
    changed_at_ms: Millis | None
    version: int = REJECTED_VERSION
    status: ClassVar[PurchaseStatus] = "rejected"


class Reserved(_Purchase, frozen=True, gc=False):
    """Stock is held. `hold_until_ms` is Postgres' and comes with the row. Money in minor units."""

    reservation_no: int | None
    unit_price_minor: int | None
    currency: str | None
    changed_at_ms: Millis | None
    hold_until_ms: Millis | None = None
    version: int = RESERVED_VERSION
    cancel_asked: bool = False
    status: ClassVar[PurchaseStatus] = "reserved"


class Ordered(_Purchase, frozen=True, gc=False):
    """Confirmed or released, as the order-writer says. Money in minor units."""

    status: Literal["confirmed", "released"]
    version: int
    reason: str | None
    reservation_no: int | None
    unit_price_minor: int | None
    currency: str | None
    refund: str
    changed_at_ms: Millis | None
    cancel_asked: bool = False


Purchase = Accepted | Answered | Rejected | Reserved | Ordered


def buyer_of(known: Purchase) -> BuyerId | None:
    """The buyer's pseudonym; None while only the row shows it."""
    if isinstance(known, Answered):
        return known.mine.buyer_id if known.mine else None
    return known.buyer_id


def may_change(known: Purchase) -> bool:
    """Whether there is something left to wait for."""
    match known:
        case Accepted() | Answered() | Reserved():
            return True
        case Rejected():
            return False
        case Ordered():
            return known.refund == "due" or (known.cancel_asked and known.status == "confirmed")
        case _:
            assert_never(known)
