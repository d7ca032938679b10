"""Commands to the order-writer, on `stampede.order-commands`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from stampede_schemas.identifiers import (
    Currency,
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
    """Every order of a product is to be undone that was reserved before this is heard; the record's key is its id.

    Only operators ask for it. Close the product first: of what is bought meanwhile some may be undone as well.
    """

    request_id: RequestIdField
    product_id: ProductIdField
    actor: Literal["operator"]


AnyCommand = PaymentReported | RefundReported | CancelRequested | CancelProductRequested
