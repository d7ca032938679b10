"""Builders of commands about `p1` and other purchases of 84.00 EUR: payments, refunds, cancellations."""

from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested, PaymentReported, RefundReported


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
