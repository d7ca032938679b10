"""Rules that workers of another version might have: right ones, but not the shipped ones."""

from inventory.domain import decide
from inventory.protocol import Rules
from inventory.table import StockTable
from stampede_schemas.decisions import AnyDecision, Rejected, Reserved
from stampede_schemas.identifiers import Millis
from stampede_schemas.requests import AnyRequest, PurchaseRequested
from tests.simulation.reference import THRIFTY_REFUSES


def thrifty(table: StockTable, request: AnyRequest, appended_at_ms: Millis) -> AnyDecision:
    """Another rule set: the same, but it never serves some of the buyers."""
    said = decide(table, request, appended_at_ms)
    if not (isinstance(said, Reserved) and isinstance(request, PurchaseRequested)):
        return said
    if said.buyer_id not in THRIFTY_REFUSES:
        return said
    return Rejected(
        purchase_id=said.purchase_id,
        buyer_id=said.buyer_id,
        product_id=said.product_id,
        quantity=said.quantity,
        payment_method=said.payment_method,
        fingerprint=said.fingerprint,
        available_after=said.available_after + said.quantity,
        reason="buyer_limit",
    )


def forgetful(rules: Rules, table: StockTable, request: AnyRequest, appended_at_ms: Millis) -> AnyDecision:
    """The same rules, but each rejection is forgotten at once, as others are after 250,000."""
    return rules(StockTable(table.partition, table.products, table.purchases), request, appended_at_ms)
