"""Everything that can be asked of the inventory: the messages of `stampede.requests`.

Nothing that touches stock or limits may live in an optional field: a reader that does not know it would fold
another history. Such a change is a new version (`upcasts.py`).
"""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from stampede_schemas.identifiers import (
    HOLD_MS_MAX,
    QUANTITY_MAX,
    STOCK_MAX,
    BuyerIdField,
    Currency,
    Fingerprint,
    ListedProductIdField,
    MillisField,
    PaymentMethod,
    Position,
    PriceMinor,
    ProductIdField,
    ProductName,
    PurchaseIdField,
    Quantity,
    RequestIdField,
    Stock,
    Traceparent,
)

ReleaseReason = Literal[
    "payment_declined", "hold_expired", "cancelled", "cancelled_by_operator", "row_error", "already_decided"
]
HoldMs = Annotated[int, Meta(ge=1, le=HOLD_MS_MAX)]
PerBuyerLimit = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class Request(Struct, frozen=True, tag_field="type", omit_defaults=True):
    """A request with a place in the log. `v` is the version of its shape; absent means 1."""

    v: Literal[1] = 1


class ProductListRequested(Request, frozen=True, tag=True, kw_only=True):
    """Put a product on sale with `stock` units. The window is `[opens_at_ms, closes_at_ms)`; absent is unbounded."""

    request_id: RequestIdField
    product_id: ListedProductIdField
    name: ProductName
    unit_price_minor: PriceMinor
    currency: Currency
    stock: Stock
    per_buyer_limit: PerBuyerLimit
    hold_ms: HoldMs
    opens_at_ms: MillisField | None = None
    closes_at_ms: MillisField | None = None


class ProductChangeRequested(Request, frozen=True, tag=True, kw_only=True):
    """Change what is named; absent fields stay. A reservation keeps the price it was made at."""

    request_id: RequestIdField
    product_id: ProductIdField
    unit_price_minor: PriceMinor | None = None
    per_buyer_limit: PerBuyerLimit | None = None
    opens_at_ms: MillisField | None = None
    closes_at_ms: MillisField | None = None
    hold_ms: HoldMs | None = None
    action: Literal["open", "close", "pause"] | None = None


class ProductRetireRequested(Request, frozen=True, tag=True, kw_only=True):
    """Close a product for good and forget its reservations."""

    request_id: RequestIdField
    product_id: ProductIdField


class RestockRequested(Request, frozen=True, tag=True, kw_only=True):
    """Add `quantity` units, or take them away when negative. Never below zero available, never zero."""

    request_id: RequestIdField
    product_id: ProductIdField
    quantity: Annotated[int, Meta(ge=-STOCK_MAX, le=STOCK_MAX)]


class PurchaseRequested(Request, frozen=True, tag=True, kw_only=True):
    """A buyer asks for `quantity` units. `fingerprint` is the hash of the canonical body behind the idempotency key."""

    purchase_id: PurchaseIdField
    buyer_id: BuyerIdField
    product_id: ProductIdField
    quantity: Quantity
    payment_method: PaymentMethod
    fingerprint: Fingerprint
    traceparent: Traceparent | None = None


class ReleaseRequested(Request, frozen=True, tag=True, kw_only=True):
    """The order-writer gives a reservation back. `reservation` is the position of the request that made it.

    The reason `already_decided` stands in old logs; nothing gives back for it any more.
    """

    purchase_id: PurchaseIdField
    product_id: ProductIdField
    reservation: Position
    reason: ReleaseReason
    traceparent: Traceparent | None = None


AnyRequest = (
    ProductListRequested
    | ProductChangeRequested
    | ProductRetireRequested
    | RestockRequested
    | PurchaseRequested
    | ReleaseRequested
)


class RequestBatch(Struct, frozen=True):
    """The value of one `requests` record: 1 to 500 requests, each decoded by itself so that one bad one stays one."""

    requests: list[Raw]
