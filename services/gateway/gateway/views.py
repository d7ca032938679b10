"""How products and purchases look from outside. Pure; instants become RFC 3339 in UTC, money stays minor units."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from gateway.projection import Product, Projection
from gateway.purchase_state import Answered, Ordered, Purchase, Reserved, buyer_of
from stampede_schemas.identifiers import ProductId, PurchaseId

PURCHASES_PATH = "/v1/purchases"
_encode = msgspec.json.Encoder().encode


def instant(ms: int | None) -> str | None:
    """Milliseconds since the epoch as RFC 3339, UTC."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def location(purchase_id: str) -> str:
    """The path of a purchase."""
    return f"{PURCHASES_PATH}/{purchase_id}"


def pending(purchase_id: PurchaseId, product_id: ProductId) -> bytes:
    """The body of a 202: a function of the ids alone, so that a repeat is byte for byte the same on any gateway."""
    at = f"{PURCHASES_PATH}/{purchase_id}"
    return (
        f'{{"purchase_id":"{purchase_id}","product_id":"{product_id}","status":"pending",'
        f'"links":{{"self":"{at}","events":"{at}/events","cancel":"{at}/cancel"}}}}'
    ).encode()


def cancelling(known: Purchase) -> bytes:
    """The body of a 202 to a cancellation."""
    shown = known.mine if isinstance(known, Answered) else known
    return _encode(
        {
            "purchase_id": known.purchase_id,
            "product_id": shown.product_id if shown else None,
            "status": known.status,
            "links": links(known.purchase_id),
        }
    )


def links(purchase_id: str) -> dict[str, str]:
    """Where to look next, as in `pending`."""
    at = location(purchase_id)
    return {"self": at, "events": f"{at}/events", "cancel": f"{at}/cancel"}


def purchase(known: Purchase) -> bytes:
    """The body of a purchase in whatever state it is."""
    return _encode(purchase_fields(known))


def purchase_fields(known: Purchase, *, buyer: bool = False) -> dict[str, object]:
    """A purchase; with its buyer's pseudonym for operators. A field that its state does not have is null."""
    body = known.mine if isinstance(known, Answered) else known
    at = known.position
    shown: dict[str, object] = {
        "purchase_id": known.purchase_id,
        "status": known.status,
        "version": known.version,
        "product_id": body.product_id if body else None,
        "quantity": body.quantity if body else 0,
        "reason": getattr(known, "reason", None),
        "reservation_no": getattr(known, "reservation_no", None),
        "price": _price(known) if isinstance(known, Reserved | Ordered) else None,
        "hold_until": instant(getattr(known, "hold_until_ms", None)),
        "changed_at": instant(getattr(known, "changed_at_ms", None)),
        "refund": getattr(known, "refund", "none"),
        "log_position": {"partition": at.partition, "offset": at.offset, "index": at.index},
        "trace_id": body.trace_id if body else None,
        "links": links(known.purchase_id),
    }
    return shown | {"buyer_id": buyer_of(known)} if buyer else shown


def _price(known: Reserved | Ordered) -> dict[str, object] | None:
    if known.unit_price_minor is None:
        return None
    total = known.unit_price_minor * known.quantity
    return {"unit_minor": known.unit_price_minor, "total_minor": total, "currency": known.currency}


def product(known: Product, now_ms: int, *, server_time: bool = True) -> dict[str, object]:
    """A product with its availability; `now_ms` is the broker's clock as well as it is known."""
    shown: dict[str, object] = {
        "product_id": known.product_id,
        "name": known.name,
        "status": known.sale_status(now_ms),
        "available": known.available,
        "may_reopen": known.may_reopen,
        "stock": known.stock,
        "unit_price_minor": known.unit_price_minor,
        "currency": known.currency,
        "per_buyer_limit": known.per_buyer_limit,
        "hold_ms": known.hold_ms,
        "opens_at": instant(known.opens_at_ms),
        "closes_at": instant(known.closes_at_ms),
    }
    return shown | {"server_time": instant(now_ms)} if server_time else shown


def sale(
    projection: Projection,
    product_ids: Iterable[ProductId],
    decided: Mapping[str, int],
    per_second: Mapping[str, float],
    now_ms: int,
) -> bytes:
    """A frame of the public feed: counts and these products; nothing that names a purchase or a buyer."""
    products = []
    for product_id in product_ids:
        known = projection.products[product_id]
        shown = product(known, now_ms, server_time=False)
        products.append(shown | {"confirmed": known.confirmed, "on_hold": known.on_hold})
    at = instant(now_ms)
    return _encode({"server_time": at, "decided": decided, "per_second": per_second, "products": products})


def etag(shown: object, now_ms: int) -> str:
    """A strong entity tag: of the content, and of the instant that the body shows as its `server_time`.

    Equal tags mean equal bytes, on any gateway. Whether a body is still good is a question about its content alone:
    see `same_content`.
    """
    return f'"{hashlib.blake2b(_encode(shown), digest_size=12).hexdigest()}-{now_ms:x}"'


def same_content(tag: str, other: str) -> bool:
    """Whether two tags are of bodies that differ in their `server_time` at most."""
    return tag.partition("-")[0] == other.partition("-")[0]


def encoded(shown: object) -> bytes:
    """The wire form of a body."""
    return _encode(shown)
