"""The rules of stock. `decide` answers a request, `evolve` applies an answer; neither knows a clock, chance or I/O.

A decision carries its effects, so `evolve` needs no rules: old decisions stay true when `decide` changes.
"""

from functools import lru_cache
from typing import Any, assert_never

from eventlog.reader import LogBroken
from inventory.table import OPERATOR_REQUESTS_MAX, Product, Reservation, StockTable
from stampede_schemas.decisions import (
    AnyDecision,
    Ignored,
    IgnoreReason,
    ProductChanged,
    ProductListed,
    ProductRetired,
    ProductStatus,
    Rejected,
    RejectReason,
    Released,
    Reserved,
    Restocked,
    RestockRejected,
    Unreadable,
)
from stampede_schemas.identifiers import STOCK_MAX, Millis, Position, ProductId, RequestId, request_key
from stampede_schemas.requests import (
    AnyRequest,
    ProductChangeRequested,
    ProductListRequested,
    ProductRetireRequested,
    PurchaseRequested,
    ReleaseRequested,
    RestockRequested,
)
from stampede_schemas.topics import partition_of

_home = lru_cache(maxsize=65_536)(partition_of)
_CHANGEABLE = ("unit_price_minor", "per_buyer_limit", "hold_ms", "opens_at_ms", "closes_at_ms")
_STATUS_AFTER: dict[str | None, ProductStatus] = {"open": "open", "close": "closed", "pause": "paused"}


class FoldBroken(LogBroken):
    """A decision does not fit the state it claims to be made on: the log forked or was edited."""


def decide(table: StockTable, request: AnyRequest, appended_at_ms: Millis) -> AnyDecision:
    """The one answer to `request`, whose record was appended at that instant of the broker's clock."""
    product = table.products.get(request.product_id)
    if product is None and _home(request.product_id) != table.partition:
        return Unreadable(reason="wrong_partition")
    match request:
        case PurchaseRequested():
            return _purchase(table, product, request, appended_at_ms)
        case ReleaseRequested():
            return _release(table, product, request)
        case ProductListRequested():
            return _list(product, request)
        case RestockRequested():
            return _restock(product, request)
        case ProductChangeRequested():
            return _change(product, request)
        case ProductRetireRequested():
            return _retire(product, request)
        case _:
            assert_never(request)


def _purchase(
    table: StockTable, product: Product | None, request: PurchaseRequested, now: Millis
) -> Reserved | Rejected | Ignored:
    first = table.answered(request.purchase_id, request.fingerprint)
    if first is not None:
        at, mismatch = first
        return Ignored(
            v=2,
            reason="answered",
            product_id=request.product_id,
            purchase_id=request.purchase_id,
            of=at,
            mismatch=mismatch,
        )
    if product is not None and product.status == "retired":
        # What was bought of it is forgotten: this may be a repeat, so a rejection could contradict the first answer.
        return Ignored(v=2, reason="retired", product_id=request.product_id, purchase_id=request.purchase_id)
    reason = _refusal(product, request, now)
    if product is None or reason is not None:
        return Rejected(
            purchase_id=request.purchase_id,
            buyer_id=request.buyer_id,
            product_id=request.product_id,
            quantity=request.quantity,
            payment_method=request.payment_method,
            fingerprint=request.fingerprint,
            traceparent=request.traceparent,
            available_after=product.available if product else 0,
            reason=reason or "unknown_product",
        )
    return Reserved(
        purchase_id=request.purchase_id,
        buyer_id=request.buyer_id,
        product_id=request.product_id,
        quantity=request.quantity,
        payment_method=request.payment_method,
        fingerprint=request.fingerprint,
        traceparent=request.traceparent,
        available_after=product.available - request.quantity,
        reservation_no=product.next_reservation_no,
        unit_price_minor=product.unit_price_minor,
        currency=product.listed.currency,
        hold_ms=product.hold_ms,
    )


def _refusal(product: Product | None, request: PurchaseRequested, now: Millis) -> RejectReason | None:
    """Why not, or None. Reasons that hold for everyone come before those of this buyer."""
    if product is None:
        return "unknown_product"
    if product.status == "closed":
        return "closed"
    if product.closes_at_ms is not None and now >= product.closes_at_ms:
        return "closed"
    if product.status == "paused":
        return "paused"
    if product.opens_at_ms is not None and now < product.opens_at_ms:
        return "not_open"
    if product.available == 0:
        return "sold_out"
    if product.held_by.get(request.buyer_id, 0) + request.quantity > product.per_buyer_limit:
        return "buyer_limit"
    if product.available < request.quantity:
        return "not_enough_left"
    return None


def _release(table: StockTable, product: Product | None, request: ReleaseRequested) -> Released | Ignored:
    held = table.purchases.get(request.purchase_id)
    if (
        product is None
        or held is None
        or not held.live
        or held.product_id != request.product_id
        or request.reservation != Position(table.partition, held.offset, held.index)
    ):
        return Ignored(v=2, reason="not_held", product_id=request.product_id, purchase_id=request.purchase_id)
    return Released(
        purchase_id=request.purchase_id,
        buyer_id=held.buyer_id,
        product_id=held.product_id,
        quantity=held.quantity,
        payment_method=held.payment_method,
        fingerprint=held.fingerprint,
        traceparent=request.traceparent,
        available_after=product.available + held.quantity,
        reservation=request.reservation,
        reason=request.reason,
    )


def _list(product: Product | None, request: ProductListRequested) -> ProductListed | Ignored:
    listed = ProductListed(
        request_id=request.request_id,
        product_id=request.product_id,
        name=request.name,
        unit_price_minor=request.unit_price_minor,
        currency=request.currency,
        stock=request.stock,
        per_buyer_limit=request.per_buyer_limit,
        hold_ms=request.hold_ms,
        status="open",
        available_after=request.stock,
        opens_at_ms=request.opens_at_ms,
        closes_at_ms=request.closes_at_ms,
    )
    if product is None:
        return listed
    if product.status == "retired":
        return _ignored(request, "retired")
    if _same_listing(listed, product.listed):
        return _ignored(request, "same")
    repeated = _repeated(product, request)
    return repeated if repeated is not None and repeated.mismatch else _ignored(request, "conflict")


def _same_listing(one: ProductListed, other: ProductListed) -> bool:
    return all(getattr(one, f) == getattr(other, f) for f in one.__struct_fields__ if f != "request_id")


def _restock(product: Product | None, request: RestockRequested) -> Restocked | RestockRejected | Ignored:
    if product is not None and (repeated := _repeated(product, request)):
        return repeated
    if product is not None and product.status == "retired":
        return _ignored(request, "retired")
    available = product.available if product else 0
    after = available + request.quantity
    if product is None or after < 0 or product.stock + request.quantity > STOCK_MAX:
        return RestockRejected(
            request_id=request.request_id,
            product_id=request.product_id,
            quantity=request.quantity,
            reason="unknown_product" if product is None else "below_zero" if after < 0 else "too_many",
            available_after=available,
        )
    return Restocked(
        request_id=request.request_id, product_id=request.product_id, quantity=request.quantity, available_after=after
    )


def _change(product: Product | None, request: ProductChangeRequested) -> ProductChanged | Ignored:
    if product is None:
        return _ignored(request, "unknown_product")
    if repeated := _repeated(product, request):
        return repeated
    if product.status == "retired":
        return _ignored(request, "retired")
    changes = {name: value for name in _CHANGEABLE if (value := getattr(request, name)) is not None}
    status = _STATUS_AFTER.get(request.action, product.status)
    return ProductChanged(**{**_as_it_is(product), **changes, "request_id": request.request_id, "status": status})


def _as_it_is(product: Product) -> dict[str, Any]:
    """Every field of a decision that carries the whole product, but for whose request it answers."""
    terms = {name: getattr(product, name) for name in (*_CHANGEABLE, "status", "stock")}
    listed = product.listed
    return terms | {
        "product_id": listed.product_id,
        "name": listed.name,
        "currency": listed.currency,
        "available_after": product.available,
    }


def _retire(product: Product | None, request: ProductRetireRequested) -> ProductRetired | Ignored:
    if product is None:
        return _ignored(request, "unknown_product")
    if product.status == "retired":
        return _ignored(request, "same")
    return ProductRetired(**{**_as_it_is(product), "request_id": request.request_id, "status": "retired"})


_OperatorRequest = ProductListRequested | RestockRequested | ProductChangeRequested | ProductRetireRequested


def _repeated(product: Product, request: _OperatorRequest) -> Ignored | None:
    """A request under this key was answered before; `mismatch`: it asked for something else."""
    key = request_key(request.request_id)
    first = next((known for known in product.answered if request_key(known) == key), None)
    return None if first is None else _ignored(request, "same", mismatch=first != request.request_id)


def _ignored(request: _OperatorRequest, reason: IgnoreReason, *, mismatch: bool = False) -> Ignored:
    return Ignored(v=2, reason=reason, product_id=request.product_id, request_id=request.request_id, mismatch=mismatch)


def evolve(table: StockTable, decision: AnyDecision, position: Position) -> None:
    """Apply an answer, given at `position`, to the table.

    Raises:
        FoldBroken: the decision's `available_after` is not what comes out, or it speaks of what does not exist.
    """
    match decision:
        case Reserved():
            _apply_reserved(table, decision, position)
        case Rejected():
            table.remember_rejected(decision.purchase_id, position.offset, position.index, decision.fingerprint)
        case Released():
            _apply_released(table, decision, position)
        case ProductListed():
            table.products[decision.product_id] = _listed(decision)
        case ProductChanged() | ProductRetired():
            _apply_changed(table, decision, position)
        case Restocked():
            product = _product(table, decision.product_id, position)
            product.stock += decision.quantity
            product.available += decision.quantity
            _remember(product, decision.request_id)
            _check(product, decision.available_after, position)
        case RestockRejected():
            if (known := table.products.get(decision.product_id)) is not None:
                _remember(known, decision.request_id)
        case Ignored() | Unreadable():
            pass
        case _:
            assert_never(decision)


def _apply_reserved(table: StockTable, decision: Reserved, position: Position) -> None:
    product = _product(table, decision.product_id, position)
    if decision.purchase_id in table.purchases:
        raise FoldBroken(f"{position}: purchase {decision.purchase_id!r} was reserved before")
    product.available -= decision.quantity
    product.reserved += decision.quantity
    product.next_reservation_no += 1
    product.held_by[decision.buyer_id] = product.held_by.get(decision.buyer_id, 0) + decision.quantity
    table.purchases[decision.purchase_id] = Reservation(
        decision.product_id,
        decision.buyer_id,
        decision.quantity,
        decision.payment_method,
        decision.fingerprint,
        position.offset,
        position.index,
        True,
    )
    _check(product, decision.available_after, position)


def _apply_released(table: StockTable, decision: Released, position: Position) -> None:
    product = _product(table, decision.product_id, position)
    held = table.purchases.get(decision.purchase_id)
    if held is None or not held.live or (held.product_id, held.quantity) != (decision.product_id, decision.quantity):
        raise FoldBroken(f"{position}: released what purchase {decision.purchase_id!r} does not hold")
    held.live = False
    product.available += decision.quantity
    product.reserved -= decision.quantity
    left = product.held_by.pop(held.buyer_id) - decision.quantity
    if left:
        product.held_by[held.buyer_id] = left
    _check(product, decision.available_after, position)


def _listed(decision: ProductListed) -> Product:
    return Product(
        listed=decision,
        unit_price_minor=decision.unit_price_minor,
        per_buyer_limit=decision.per_buyer_limit,
        hold_ms=decision.hold_ms,
        status=decision.status,
        opens_at_ms=decision.opens_at_ms,
        closes_at_ms=decision.closes_at_ms,
        stock=decision.stock,
        available=decision.stock,
        answered={decision.request_id: None},
    )


def _apply_changed(table: StockTable, decision: ProductChanged | ProductRetired, position: Position) -> None:
    product = _product(table, decision.product_id, position)
    for name in (*_CHANGEABLE, "status"):
        setattr(product, name, getattr(decision, name))
    _remember(product, decision.request_id)
    if decision.status == "retired":
        table.forget_purchases_of(decision.product_id)
        product.held_by = {}
    _check(product, decision.available_after, position)


def _product(table: StockTable, product_id: ProductId, position: Position) -> Product:
    product = table.products.get(product_id)
    if product is None:
        raise FoldBroken(f"{position}: a decision on {product_id!r}, which was never listed")
    return product


def _remember(product: Product, request_id: RequestId) -> None:
    product.answered[request_id] = None
    if len(product.answered) > OPERATOR_REQUESTS_MAX:
        del product.answered[next(iter(product.answered))]


def _check(product: Product, available_after: int, position: Position) -> None:
    if (
        product.available != available_after
        or available_after < 0
        or product.available + product.reserved != product.stock
    ):
        raise FoldBroken(
            f"{position}: {product.listed.product_id!r} has {product.available} available and {product.reserved} "
            f"reserved of {product.stock}, but the decision says {available_after} are available"
        )
