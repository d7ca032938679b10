"""Commands to the order-writer, on `stampede.order-commands`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from stampede_schemas.identifiers import (
    Currency,
    OffsetField,
    PriceMinor,
    ProductIdField,
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
    """The reservations of a product below `requests_end` are to be undone; the record's key is the product's id.

    `requests_end` is the offset where the product's partition of `requests` ended after the operator had asked. So this
    means the same reservations whenever it is read: those whose requests stood in the log by then, decided or not, and
    none of a later sale. Of several records with one `request_id` the first counts.

    Records of before this field lack it. Which reservations those meant depended on when they were read, and no log
    says that: they mean none any more and become dead letters. What they undid stands in `decisions`.
    """

    request_id: RequestIdField
    product_id: ProductIdField
    actor: Literal["operator"]
    requests_end: OffsetField | None = None


AnyCommand = PaymentReported | RefundReported | CancelRequested | CancelProductRequested
