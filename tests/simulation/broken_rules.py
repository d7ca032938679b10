"""Broken rules of stock, each a small change of the shipped `decide`, for the simulator to find."""

from msgspec.structs import replace

from inventory.domain import decide
from inventory.table import StockTable
from stampede_schemas.decisions import AnyDecision, Ignored, Rejected, Released, Reserved
from stampede_schemas.identifiers import Millis
from stampede_schemas.requests import AnyRequest, PurchaseRequested, ReleaseRequested


def forgets_purchases(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """No check for duplicates."""
    if isinstance(request, PurchaseRequested):
        table = replace(table, purchases={}, rejected={}, rejected_before={})
    return decide(table, request, at)


def forgets_half_of_the_rejected(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """A rejection is decided anew as soon as a generation is full."""
    return decide(replace(table, rejected_before={}), request, at)


def forgets_rejected_bodies(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """Of a rejection the place is remembered, and not for what it was asked."""
    bare = {key: (offset, index, "") for key, (offset, index, _) in table.rejected.items()}
    return decide(replace(table, rejected=bare), request, at)


def finds_no_body_different(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """Every repeat is called the same."""
    said = decide(table, request, at)
    return replace(said, mismatch=False) if isinstance(said, Ignored) else said


def repeats_the_last_answer(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """A purchase of the older generation is looked for in the newer one."""
    said = decide(table, request, at)
    if not (isinstance(said, Ignored) and said.of and table.rejected and said.purchase_id in table.rejected_before):
        return said
    offset, index, _ = list(table.rejected.values())[-1]
    return replace(said, of=replace(said.of, offset=offset, index=index))


def rejects_what_is_retired(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """A purchase of a retired product is rejected, be it the repeat of one that was reserved or not."""
    said = decide(table, request, at)
    if not (isinstance(said, Ignored) and isinstance(request, PurchaseRequested) and said.reason == "retired"):
        return said
    return Rejected(
        purchase_id=request.purchase_id, buyer_id=request.buyer_id, product_id=request.product_id,
        quantity=request.quantity, payment_method=request.payment_method, fingerprint=request.fingerprint,
        available_after=table.products[request.product_id].available, reason="closed",
    )  # fmt: skip


def keeps_the_last_unit(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """Off by one at the last unit."""
    said = decide(table, request, at)
    if not isinstance(said, Reserved) or said.available_after > 0:
        return said
    return Rejected(
        purchase_id=said.purchase_id, buyer_id=said.buyer_id, product_id=said.product_id, quantity=said.quantity,
        payment_method=said.payment_method, fingerprint=said.fingerprint, available_after=said.quantity,
        reason="sold_out",
    )  # fmt: skip


def releases_twice(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """Gives back what was given back before."""
    said = decide(table, request, at)
    if not (isinstance(said, Ignored) and isinstance(request, ReleaseRequested)):
        return said
    held = table.purchases.get(request.purchase_id)
    if held is None:
        return said
    return Released(
        purchase_id=request.purchase_id, buyer_id=held.buyer_id, product_id=held.product_id, quantity=held.quantity,
        payment_method=held.payment_method, fingerprint=held.fingerprint, reservation=request.reservation,
        reason=request.reason, available_after=table.products[held.product_id].available + held.quantity,
    )  # fmt: skip


def releases_wrong_positions(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """A release need not name the position of the reservation."""
    if isinstance(request, ReleaseRequested) and (held := table.purchases.get(request.purchase_id)) is not None:
        position = type(request.reservation)(table.partition, held.offset, held.index)
        request = replace(request, reservation=position)
    return decide(table, request, at)


def oversells_by_one(table: StockTable, request: AnyRequest, at: Millis) -> AnyDecision:
    """Believes that one more is left."""
    said = decide(table, request, at)
    if not (isinstance(said, Rejected) and said.reason == "sold_out"):
        return said
    product = table.products[said.product_id]
    return Reserved(
        purchase_id=said.purchase_id, buyer_id=said.buyer_id, product_id=said.product_id, quantity=said.quantity,
        payment_method=said.payment_method, fingerprint=said.fingerprint, available_after=0,
        reservation_no=product.next_reservation_no, unit_price_minor=product.unit_price_minor, currency="EUR",
        hold_ms=product.hold_ms,
    )  # fmt: skip
