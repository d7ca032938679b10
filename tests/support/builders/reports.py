"""Builders of commands about `p1` and other purchases of 84.00 EUR: payments, refunds, cancellations."""

from stampede_schemas.identifiers import ProductId, PurchaseId, RequestId
from stampede_schemas.order_commands import CancelProductRequested, CancelRequested, PaymentReported, RefundReported


def paid(purchase_id: str = "p1", amount_minor: int = 8_400) -> PaymentReported:
    """The provider says that the money is there."""
    return PaymentReported(
        report_id=RequestId(f"r-{purchase_id}"),
        purchase_id=PurchaseId(purchase_id),
        outcome="approved",
        amount_minor=amount_minor,
        currency="EUR",
        provider_ref="x",
    )


def refunded(purchase_id: str = "p1") -> RefundReported:
    """The provider says that the money went back."""
    return RefundReported(
        report_id=RequestId(f"r-{purchase_id}"),
        purchase_id=PurchaseId(purchase_id),
        amount_minor=8_400,
        currency="EUR",
        provider_ref="x",
    )


def cancelled(purchase_id: str = "p1", actor: str = "", request_id: str = "c1") -> CancelRequested:
    """Asked by its buyer, unless by somebody else."""
    return CancelRequested(
        request_id=RequestId(request_id), purchase_id=PurchaseId(purchase_id), actor=actor or f"buyer-of-{purchase_id}"
    )


def all_of(product_id: str, requests_end: int | None, request_id: str = "all") -> CancelProductRequested:
    """An operator wants every order of a product undone that was asked for below this place; None: as of old."""
    return CancelProductRequested(
        request_id=RequestId(request_id), product_id=ProductId(product_id), actor="operator", requests_end=requests_end
    )
