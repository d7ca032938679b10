"""What the inventory answered: the messages of `stampede.decisions`, which *is* the database of Stampede.

A decision carries its effects, so that folding needs no rules and old decisions stay true under new rules.
The five envelope fields of `DecisionsRecord` have a frozen form for the life of the log.
"""

from typing import Literal

from msgspec import Raw, Struct

from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId, RequestId, WriterEpoch
from stampede_schemas.requests import ReleaseReason

RejectReason = Literal["sold_out", "not_enough_left", "buyer_limit", "not_open", "closed", "paused", "unknown_product"]
IgnoreReason = Literal["same", "conflict", "answered", "not_held", "unknown_product", "retired"]
UnreadableReason = Literal[
    "not_json", "not_a_request", "unknown_type", "unknown_version", "wrong_partition", "too_many", "too_large", "empty"
]
ProductStatus = Literal["open", "paused", "closed", "retired"]


class Decision(Struct, frozen=True, tag_field="type", omit_defaults=True):
    """The one answer to one request. Its field `v` is the version of its shape; absent on the wire means 1.

    A version above 1 has no default, so that it is always written: what is absent could not be told from version 1.
    """


class _Version1(Decision, frozen=True):
    v: Literal[1] = 1


class _WholeProduct(_Version1, frozen=True, kw_only=True):
    """Everything about a product after the decision. `stock` is listed + restocked, in units."""

    request_id: RequestId
    product_id: ProductId
    name: str
    unit_price_minor: int
    currency: str
    stock: int
    per_buyer_limit: int
    hold_ms: int
    status: ProductStatus
    available_after: int
    opens_at_ms: Millis | None = None
    closes_at_ms: Millis | None = None


class ProductListed(_WholeProduct, frozen=True, tag=True, kw_only=True):
    """The product is on sale (within its window)."""


class ProductChanged(_WholeProduct, frozen=True, tag=True, kw_only=True):
    """The product as it is from here on; stock and reservations are untouched."""


class ProductRetired(_WholeProduct, frozen=True, tag=True, kw_only=True):
    """The product is closed for good; its reservations are forgotten by the fold."""


class Restocked(_Version1, frozen=True, tag=True, kw_only=True):
    """`quantity` units were added (taken away when negative)."""

    request_id: RequestId
    product_id: ProductId
    quantity: int
    available_after: int


class RestockRejected(_Version1, frozen=True, tag=True, kw_only=True):
    """The restock would have gone below zero or above the limit of stock, or there is no such product."""

    request_id: RequestId
    product_id: ProductId
    quantity: int
    reason: Literal["below_zero", "too_many", "unknown_product"]
    available_after: int


class _OnPurchase(_Version1, frozen=True, kw_only=True):
    """What every decision on a purchase carries, so that its readers need no other source."""

    purchase_id: PurchaseId
    buyer_id: BuyerId
    product_id: ProductId
    quantity: int
    payment_method: str
    fingerprint: str
    available_after: int
    traceparent: str | None = None


class Reserved(_OnPurchase, frozen=True, tag=True, kw_only=True):
    """Stock is held for the buyer. `reservation_no` counts 1, 2, 3 … within the product without gaps."""

    reservation_no: int
    unit_price_minor: int
    currency: str
    hold_ms: int


class Rejected(_OnPurchase, frozen=True, tag=True, kw_only=True):
    """No units for this purchase; true for as long as the fold remembers it, and then the purchase may be decided anew.

    `available_after` is 0 for an unknown product.
    """

    reason: RejectReason


class Released(_OnPurchase, frozen=True, tag=True, kw_only=True):
    """The units of `reservation` are available again."""

    reservation: Position
    reason: ReleaseReason


class Ignored(Decision, frozen=True, tag=True, kw_only=True):
    """Nothing changed.

    A purchase that was answered before gets `answered`: `of` is the position of its first answer, and `mismatch` says
    that this body differs from the first one. A purchase of a retired product that is not remembered gets `retired`,
    which is no outcome: what was said of it before, if anything, stands. An operator's request that was answered before
    gets `same`, with `mismatch` if it was made under the key of another one (see `identifiers.request_key`).
    """

    v: Literal[2]
    reason: IgnoreReason
    product_id: ProductId
    request_id: RequestId | None = None
    purchase_id: PurchaseId | None = None
    of: Position | None = None
    mismatch: bool = False


class Unreadable(_Version1, frozen=True, tag=True, kw_only=True):
    """The request could not be read; its bytes are a dead letter under the same position."""

    reason: UnreadableReason


AnyDecision = (
    ProductListed
    | ProductChanged
    | ProductRetired
    | Restocked
    | RestockRejected
    | Reserved
    | Rejected
    | Released
    | Ignored
    | Unreadable
)


class Envelope(Struct, frozen=True):
    """The value of one `decisions` record with its decisions still undecoded.

    `source_offset` and `source_crc` (CRC-32 of the value) name the `requests` record it answers, `appended_at_ms` is
    that record's LogAppendTime; `load` and `start` name the load that wrote it and where `decisions` ended then.
    """

    source_offset: int
    source_crc: int
    load: WriterEpoch
    start: int
    appended_at_ms: Millis
    decisions: Raw


class DecisionsRecord(Struct, frozen=True):
    """The value of one `decisions` record, whole: one decision per request, in order."""

    source_offset: int
    source_crc: int
    load: WriterEpoch
    start: int
    appended_at_ms: Millis
    decisions: list[AnyDecision]
