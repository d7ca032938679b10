"""Builders of requests. Every product here lives in partition 0, as `topics.partition_of` places it."""

from itertools import count

from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId, RequestId
from stampede_schemas.requests import (
    ProductChangeRequested,
    ProductListRequested,
    ProductRetireRequested,
    PurchaseRequested,
    ReleaseReason,
    ReleaseRequested,
    RestockRequested,
)
from stampede_schemas.topics import partition_of

_names = (ProductId(f"p{n}") for n in count())
LAMP, MUG = (next(name for name in _names if partition_of(name) == 0) for _ in range(2))
ELSEWHERE = next(name for name in _names if partition_of(name) != 0)


def listing(
    product: ProductId = LAMP,
    stock: int = 3,
    limit: int = 2,
    request: str = "list",
    opens_at_ms: int | None = None,
    closes_at_ms: int | None = None,
    price: int = 500,
) -> ProductListRequested:
    """A product is to be sold."""
    return ProductListRequested(
        request_id=RequestId(request),
        product_id=product,
        name="Lamp",
        unit_price_minor=price,
        currency="EUR",
        stock=stock,
        per_buyer_limit=limit,
        hold_ms=60_000,
        opens_at_ms=None if opens_at_ms is None else Millis(opens_at_ms),
        closes_at_ms=None if closes_at_ms is None else Millis(closes_at_ms),
    )


def purchase(
    purchase_id: str = "buy-1",
    buyer: str = "ann",
    quantity: int = 1,
    product: ProductId = LAMP,
    fingerprint: str = "f",
) -> PurchaseRequested:
    """A buyer asks for units."""
    return PurchaseRequested(
        purchase_id=PurchaseId(purchase_id),
        buyer_id=BuyerId(buyer),
        product_id=product,
        quantity=quantity,
        payment_method="card",
        fingerprint=fingerprint,
    )


def release(
    at: tuple[int, int], purchase_id: str = "buy-1", product: ProductId = LAMP, reason: ReleaseReason = "hold_expired"
) -> ReleaseRequested:
    """A reservation, made by the request at (offset, index), is to be given back."""
    return ReleaseRequested(
        purchase_id=PurchaseId(purchase_id), product_id=product, reservation=Position(0, *at), reason=reason
    )


def restock(quantity: int, request: str = "restock-1", product: ProductId = LAMP) -> RestockRequested:
    """Units are to be added, or taken away."""
    return RestockRequested(request_id=RequestId(request), product_id=product, quantity=quantity)


def change(request: str = "change-1", product: ProductId = LAMP, **fields: object) -> ProductChangeRequested:
    """What `fields` name is to be changed."""
    return ProductChangeRequested(request_id=RequestId(request), product_id=product, **fields)  # type: ignore[arg-type]


def retire(request: str = "retire-1", product: ProductId = LAMP) -> ProductRetireRequested:
    """The product is to be closed for good."""
    return ProductRetireRequested(request_id=RequestId(request), product_id=product)
