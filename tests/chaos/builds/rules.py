"""Another version of the rules, which differs visibly and harmlessly, and only for products that are called so.

Some purchases of such a product are refused although there is stock: harmless, because nothing is sold twice or lost;
visible, because a worker of the other version decides otherwise on the same state.
"""

from zlib import crc32

from inventory.domain import decide
from inventory.table import StockTable
from stampede_schemas.decisions import AnyDecision, Rejected, Reserved
from stampede_schemas.identifiers import Millis
from stampede_schemas.requests import AnyRequest, PurchaseRequested

MARK = "odd-"  # products with this prefix are decided differently


def other_rules(table: StockTable, request: AnyRequest, appended_at_ms: Millis) -> AnyDecision:
    """The shipped rules, but every third purchase (by its id) of a marked product is refused."""
    decision = decide(table, request, appended_at_ms)
    if (
        isinstance(decision, Reserved)
        and isinstance(request, PurchaseRequested)
        and decision.product_id.startswith(MARK)
        and crc32(decision.purchase_id.encode()) % 3 == 0
    ):
        return Rejected(
            purchase_id=decision.purchase_id,
            buyer_id=decision.buyer_id,
            product_id=decision.product_id,
            quantity=decision.quantity,
            payment_method=decision.payment_method,
            fingerprint=decision.fingerprint,
            traceparent=decision.traceparent,
            available_after=table.products[decision.product_id].available,
            reason="paused",
        )
    return decision
