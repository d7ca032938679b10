"""How products and purchases look from outside. Pure; instants become RFC 3339 in UTC, money stays minor units."""

import hashlib
from datetime import UTC, datetime

import msgspec

from gateway.projection import Product, Purchase
from stampede_schemas.identifiers import PurchaseId

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


def pending(purchase_id: PurchaseId) -> bytes:
    """The body of a 202: a function of the id alone, so that a repeat is byte for byte the same."""
    return (
        f'{{"purchase_id":"{purchase_id}","status":"pending","links":{{"self":"{PURCHASES_PATH}/{purchase_id}"}}}}'
    ).encode()


def purchase(known: Purchase) -> bytes:
    """The body of a purchase in whatever state it is."""
    price = None
    if known.unit_price_minor is not None:
        total = known.unit_price_minor * known.quantity
        price = {"unit_minor": known.unit_price_minor, "total_minor": total, "currency": known.currency}
    at = known.position
    return _encode(
        {
            "purchase_id": known.purchase_id,
            "status": known.status,
            "version": known.version,
            "product_id": known.product_id,
            "quantity": known.quantity,
            "reason": known.reason,
            "reservation_no": known.reservation_no,
            "price": price,
            "hold_until": instant(known.hold_until_ms),
            "refund": known.refund,
            "log_position": {"partition": at.partition, "offset": at.offset, "index": at.index} if at else None,
            "trace_id": known.trace_id,
            "links": {"self": location(known.purchase_id)},
        }
    )


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


def etag(shown: object) -> str:
    """The entity tag of a body without its `server_time`: what a buyer waits to see change."""
    return f'"{hashlib.blake2b(_encode(shown), digest_size=12).hexdigest()}"'


def encoded(shown: object) -> bytes:
    """The wire form of a body."""
    return _encode(shown)
