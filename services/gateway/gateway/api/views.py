"""The answers of the API: the shape of each body, from which its description is made, and how it is filled. Pure.

Instants are RFC 3339 in UTC, money is minor units.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec.structs import asdict, astuple

from gateway.read_side.projection import Product, Projection, SaleStatus
from gateway.read_side.purchase_state import Answered, Ordered, Purchase, PurchaseStatus, Reserved, buyer_of
from stampede_schemas.identifiers import ProductId, PurchaseId

PURCHASES_PATH = "/v1/purchases"
Instant = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
encoded = msgspec.json.Encoder().encode  # the wire form of a body


class _Shape(msgspec.Struct, frozen=True, gc=False):
    """A body, or a part of one."""


class Links(_Shape, frozen=True, rename={"here": "self"}):
    """Where to look next: the purchase, its events, and where to POST in order to cancel it."""

    here: str
    events: str
    cancel: str


class PurchaseAccepted(_Shape, frozen=True):
    """Accepted: the request is in the log, and will be acted on. `status` is what it was when this was said.

    `product_id` is part of what makes a purchase: the same Idempotency-Key for another product is another purchase.
    """

    purchase_id: str
    product_id: str | None
    status: PurchaseStatus
    links: Links


class Price(_Shape, frozen=True):
    """Minor units of `currency`."""

    unit_minor: int
    total_minor: int
    currency: str


class LogPosition(_Shape, frozen=True):
    """Where the request stands in `stampede.requests`."""

    partition: int
    offset: int
    index: int


class PurchaseState(_Shape, frozen=True):
    """A purchase now.

    `version` rises with every change; `changed_at` is when it became what it is; `reason` says why it was rejected
    or released (declined payment, expired hold, cancellation …); `hold_until` is null until the order is in the
    database, and again when nothing is on hold any more. There is no place in the queue: a record of the log holds up
    to 500 requests, so how many buyers are ahead is not known until they are decided.
    """

    purchase_id: str
    status: PurchaseStatus
    version: int
    product_id: str | None
    quantity: int
    reason: str | None
    reservation_no: int | None
    price: Price | None
    hold_until: Instant | None
    changed_at: Instant | None
    refund: Literal["none", "due", "done"]
    log_position: LogPosition | None
    trace_id: str | None
    links: Links


class Order(PurchaseState, frozen=True):
    """An order as operators see it: with its buyer's pseudonym."""

    buyer_id: str | None


class Purchases(_Shape, frozen=True):
    """A page of the caller's purchases, newest first; `next_cursor` null: the last page."""

    purchases: list[PurchaseState]
    next_cursor: str | None


class Orders(_Shape, frozen=True):
    """A page of orders, newest first; `next_cursor` null: the last page."""

    orders: list[Order]
    next_cursor: str | None


class ProductState(_Shape, frozen=True):
    """A product and what is left of it. `may_reopen`: units on hold may come back."""

    product_id: str
    name: str
    status: SaleStatus
    available: int
    may_reopen: bool
    stock: int
    unit_price_minor: int
    currency: str
    per_buyer_limit: int
    hold_ms: int
    opens_at: Instant | None
    closes_at: Instant | None
    server_time: Instant


class Products(_Shape, frozen=True):
    """All products, by id."""

    products: list[ProductState]
    server_time: Instant


class Reported(_Shape, frozen=True):
    """The report is in the log; one that is late or repeated changes nothing."""

    report_id: str
    status: Literal["accepted"]


class Undecided(_Shape, frozen=True):
    """The request is in the log, but its decision was not seen in time."""

    product_id: str
    status: Literal["pending"]


class Cancelling(_Shape, frozen=True):
    """The cancellation of all orders of a product is in the log."""

    product_id: str
    status: Literal["cancelling"]


def instant(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _instant(ms: int | None) -> str | None:
    return None if ms is None else instant(ms)


def location(purchase_id: str) -> str:
    """The path of a purchase."""
    return f"{PURCHASES_PATH}/{purchase_id}"


def pending(purchase_id: PurchaseId, product_id: ProductId) -> bytes:
    """The body of a 202: a function of the ids alone, so that a repeat is byte for byte the same on any gateway."""
    return encoded(PurchaseAccepted(purchase_id, product_id, "pending", _links(purchase_id)))


def cancelling(known: Purchase) -> bytes:
    """The body of a 202 to a cancellation."""
    body = known.mine if isinstance(known, Answered) else known
    product_id = body.product_id if body else None
    return encoded(PurchaseAccepted(known.purchase_id, product_id, known.status, _links(known.purchase_id)))


def purchase(known: Purchase) -> bytes:
    """The body of a purchase in whatever state it is."""
    return encoded(purchase_state(known))


def purchase_state(known: Purchase) -> PurchaseState:
    """A purchase. A field that its state does not have is null."""
    body = known.mine if isinstance(known, Answered) else known
    at = known.position
    return PurchaseState(
        purchase_id=known.purchase_id,
        status=known.status,
        version=known.version,
        product_id=body.product_id if body else None,
        quantity=body.quantity if body else 0,
        reason=getattr(known, "reason", None),
        reservation_no=getattr(known, "reservation_no", None),
        price=_price(known) if isinstance(known, Reserved | Ordered) else None,
        hold_until=_instant(getattr(known, "hold_until_ms", None)),
        changed_at=_instant(getattr(known, "changed_at_ms", None)),
        refund=getattr(known, "refund", "none"),
        log_position=LogPosition(at.partition, at.offset, at.index),
        trace_id=body.trace_id if body else None,
        links=_links(known.purchase_id),
    )


def order(known: Purchase) -> Order:
    """A purchase with its buyer."""
    return Order(**asdict(purchase_state(known)), buyer_id=buyer_of(known))


def _price(known: Reserved | Ordered) -> Price | None:
    if known.unit_price_minor is None or known.currency is None:
        return None
    return Price(known.unit_price_minor, known.unit_price_minor * known.quantity, known.currency)


def _links(purchase_id: str) -> Links:
    at = location(purchase_id)
    return Links(at, at + "/events", at + "/cancel")


def product(known: Product, now_ms: int) -> ProductState:
    """A product with its availability; `now_ms` is the broker's clock as well as it is known."""
    return ProductState(
        product_id=known.product_id,
        name=known.name,
        status=known.sale_status(now_ms),
        available=known.available,
        may_reopen=known.may_reopen,
        stock=known.stock,
        unit_price_minor=known.unit_price_minor,
        currency=known.currency,
        per_buyer_limit=known.per_buyer_limit,
        hold_ms=known.hold_ms,
        opens_at=_instant(known.opens_at_ms),
        closes_at=_instant(known.closes_at_ms),
        server_time=instant(now_ms),
    )


def sale(
    projection: Projection,
    product_ids: Iterable[ProductId],
    per_second: Mapping[str, float],
    now_ms: int,
) -> bytes:
    """A frame of the public feed: counts and these products; nothing that names a purchase or a buyer."""
    products = []
    for product_id in product_ids:
        known = projection.products[product_id]
        shown = asdict(product(known, now_ms)) | {"confirmed": known.confirmed, "on_hold": known.on_hold}
        del shown["server_time"]  # once for the frame
        products.append(shown)
    at = instant(now_ms)
    return encoded(
        {"server_time": at, "decided": projection.tally.decided, "per_second": per_second, "products": products}
    )


def etag(products: Sequence[ProductState], now_ms: int) -> str:
    """A strong entity tag: of the content, and of the instant that the body shows as its `server_time`.

    Equal tags mean equal bytes, on any gateway. Whether a body is still good is a question about its content alone:
    see `same_content`.
    """
    content = encoded([astuple(one)[:-1] for one in products])  # all but `server_time`
    return f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}-{now_ms:x}"'


def same_content(tag: str, other: str) -> bool:
    """Whether two tags are of bodies that differ in their `server_time` at most."""
    return tag.partition("-")[0] == other.partition("-")[0]
