"""What concerns orders: commands to the order-writer (`stampede.order-commands`) and its public events
(`stampede.orders`), and the parts of a stock snapshot (`stampede.stock-snapshots`)."""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from stampede_schemas.identifiers import (
    BuyerId,
    Currency,
    Load,
    Millis,
    Position,
    PriceMinor,
    ProductId,
    ProductIdField,
    PurchaseId,
    PurchaseIdField,
    RequestIdField,
)

ProviderRef = Annotated[str, Meta(max_length=128)]


class Command(Struct, frozen=True, tag_field="type", omit_defaults=True):
    """A message to the order-writer about orders. `v` is the version of its shape; absent means 1."""

    v: Literal[1] = 1


class PaymentReported(Command, frozen=True, tag=True, kw_only=True):
    """What a payment provider said of a purchase; repeated or late reports are harmless."""

    report_id: RequestIdField
    purchase_id: PurchaseIdField
    outcome: Literal["approved", "declined"]
    amount_minor: PriceMinor
    currency: Currency
    provider_ref: ProviderRef


class RefundReported(Command, frozen=True, tag=True, kw_only=True):
    """The payment provider gave back what it had taken for a purchase, and will take nothing more for it."""

    report_id: RequestIdField
    purchase_id: PurchaseIdField
    amount_minor: PriceMinor
    currency: Currency
    provider_ref: ProviderRef


class CancelRequested(Command, frozen=True, tag=True, kw_only=True):
    """`actor` (the buyer's pseudonym, or `operator`) wants the purchase undone."""

    request_id: RequestIdField
    purchase_id: PurchaseIdField
    actor: Annotated[str, Meta(min_length=1, max_length=96)]


class CancelProductRequested(Command, frozen=True, tag=True, kw_only=True):
    """Every order of a product is to be undone that was reserved before this is heard; the record's key is its id.

    Only operators ask for it. Close the product first: of what is bought meanwhile some may be undone as well.
    """

    request_id: RequestIdField
    product_id: ProductIdField
    actor: Literal["operator"]


AnyCommand = PaymentReported | RefundReported | CancelRequested | CancelProductRequested


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


class SnapshotPart(Struct, frozen=True, tag_field="type", tag=True):
    """A slice of a partition's stock table; `content` is the inventory's own business."""

    id: str
    index: int
    content: Raw


class SnapshotCommitted(Struct, frozen=True, tag_field="type", tag=True, omit_defaults=True):
    """Parts `parts` (their offsets) are the whole table after `source_offset`, read up to `next_offset` of decisions.

    `load` and `anchor` are those of the last *counting* record, never the writer's own. `form` is that of the content
    of the parts.
    """

    id: str
    source_offset: int
    next_offset: int
    load: Load
    anchor: int
    parts: list[int]
    topic_ids: dict[str, str]
    form: int = 1


AnySnapshotRecord = SnapshotPart | SnapshotCommitted
