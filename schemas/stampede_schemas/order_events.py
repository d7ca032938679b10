"""What becomes of orders, for everybody: the events on `stampede.orders`."""

from typing import Literal

from msgspec import Struct

from stampede_schemas.identifiers import (
    BuyerId,
    Millis,
    Position,
    ProductId,
    PurchaseId,
)


class _Order(Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True):
    """The full order as of `version`; a reader keeps the highest version it saw per `purchase_id`."""

    v: Literal[1] = 1
    purchase_id: PurchaseId
    version: int
    buyer_id: BuyerId
    product_id: ProductId
    quantity: int
    status: Literal["reserved", "confirmed", "released", "rejected"]
    reservation: Position
    reservation_no: int
    unit_price_minor: int
    currency: str
    payment_method: str
    occurred_at_ms: Millis
    reason: str | None = None
    refund: Literal["none", "due", "done"] = "none"
    traceparent: str | None = None


class OrderConfirmed(_Order, frozen=True, tag=True, kw_only=True):
    """Sold."""


class OrderReleased(_Order, frozen=True, tag=True, kw_only=True):
    """Given back, for `reason`."""


class OrderRefunded(_Order, frozen=True, tag=True, kw_only=True):
    """The money of a released order went back."""


AnyOrderEvent = OrderConfirmed | OrderReleased | OrderRefunded
