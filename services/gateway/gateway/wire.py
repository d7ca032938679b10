"""What goes over the wire, as models: they check what operators send, and document what everybody gets.

Answers are encoded by `views.py`; that they are what these models say is tested against the running gateway.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from gateway import admission, webhook
from gateway.orders_sql import Status
from gateway.projection import SaleStatus
from gateway.purchase_state import PurchaseStatus
from stampede_schemas.identifiers import HOLD_MS_MAX, PRICE_MINOR_MAX, QUANTITY_MAX, STOCK_MAX

HOLD_MS_DEFAULT = 120_000
PER_BUYER_LIMIT_DEFAULT = 10
ID = "97ee-08-0f343b0931126a20f133d67c2b018a3b"
AT = "2026-11-21T12:00:00.000Z"

ProductId = Annotated[str, Field(pattern=admission.PRODUCT_ID_PATTERN, examples=["tea"])]
PriceMinor = Annotated[int, Field(ge=0, le=PRICE_MINOR_MAX, strict=True, examples=[1990])]
HoldMs = Annotated[int, Field(ge=1, le=HOLD_MS_MAX, strict=True, examples=[60_000])]
PerBuyerLimit = Annotated[int, Field(ge=1, le=QUANTITY_MAX, strict=True, examples=[2])]
Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PurchaseOrder(_Strict):
    """What to buy. Unknown fields are refused."""

    product_id: ProductId
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX, examples=[1])]
    payment_method: Annotated[str, Field(pattern=admission.PAYMENT_METHOD_PATTERN)] = admission.PAYMENT_METHOD_DEFAULT


class Links(BaseModel):
    """Where to look next: the purchase, its events, and where to POST in order to cancel it."""

    self: str
    events: str
    cancel: str


class PurchaseAccepted(BaseModel):
    """Accepted: the request is in the log, and will be acted on. `status` is what it was when this was said.

    `product_id` is part of what makes a purchase: the same Idempotency-Key for another product is another purchase.
    """

    purchase_id: str
    product_id: str | None
    status: PurchaseStatus
    links: Links


class Price(BaseModel):
    """Minor units of `currency`."""

    unit_minor: int
    total_minor: int
    currency: str


class LogPosition(BaseModel):
    """Where the request stands in `stampede.requests`."""

    partition: int
    offset: int
    index: int


class PurchaseState(BaseModel):
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


class Purchases(BaseModel):
    """A page of the caller's purchases, newest first; `next_cursor` null: the last page."""

    purchases: list[PurchaseState]
    next_cursor: str | None


class ProductState(BaseModel):
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


class Products(BaseModel):
    """All products, by id."""

    products: list[ProductState]
    server_time: Instant


class PaymentReport(_Strict):
    """What a payment provider says. `amount_minor`: all that was paid, or given back; it must be the order's total."""

    report_id: Annotated[str, Field(pattern=webhook.REPORT_ID_PATTERN, examples=["evt-1"])]
    purchase_id: Annotated[str, Field(pattern=webhook.PURCHASE_ID_PATTERN, examples=[ID])]
    outcome: Literal["approved", "declined", "refunded"]
    amount_minor: PriceMinor
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", examples=["EUR"])]
    provider_ref: Annotated[str, Field(max_length=128)] = ""


class Reported(BaseModel):
    """The report is in the log; one that is late or repeated changes nothing."""

    report_id: str
    status: Literal["accepted"]


class ProductToList(_Strict):
    """A product to put on sale. Instants are RFC 3339 with an offset; an absent end of the window is open."""

    product_id: ProductId
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$", examples=["First flush"])]
    unit_price_minor: PriceMinor
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", examples=["EUR"])]
    stock: Annotated[int, Field(ge=0, le=STOCK_MAX, strict=True, examples=[100])]
    per_buyer_limit: PerBuyerLimit = PER_BUYER_LIMIT_DEFAULT
    hold_ms: HoldMs = HOLD_MS_DEFAULT
    opens_at: AwareDatetime | None = None
    closes_at: AwareDatetime | None = None


def _at_least_one(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["minProperties"] = 1


class ProductChange(BaseModel):
    """What to change, at least one thing; absent fields stay, and null is no value: a window cannot be taken back."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_at_least_one)
    unit_price_minor: PriceMinor | SkipJsonSchema[None] = None
    per_buyer_limit: PerBuyerLimit | SkipJsonSchema[None] = None
    hold_ms: HoldMs | SkipJsonSchema[None] = None
    opens_at: AwareDatetime | SkipJsonSchema[None] = None
    closes_at: AwareDatetime | SkipJsonSchema[None] = None

    @model_validator(mode="after")
    def _something(self) -> "ProductChange":
        if not self.model_fields_set:
            raise ValueError("name at least one thing to change")
        if any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("null is no value here; leave the field out")
        return self


class Restock(_Strict):
    """Units to add, or to take away when negative; not 0."""

    quantity: Annotated[
        int,
        Field(ge=-STOCK_MAX, le=STOCK_MAX, strict=True, examples=[10], json_schema_extra={"not": {"const": 0}}),
    ]


class Undecided(BaseModel):
    """The wish is in the log, but its decision was not seen in time."""

    product_id: str
    status: Literal["pending"]


class Cancelling(BaseModel):
    """The cancellation of all orders of a product is in the log."""

    product_id: str
    status: Literal["cancelling"]


class Order(PurchaseState):
    """An order as operators see it: with its buyer's pseudonym."""

    buyer_id: str | None


class Orders(BaseModel):
    """A page of orders, newest first; `next_cursor` null: the last page."""

    orders: list[Order]
    next_cursor: str | None


OrderStatus = Status
_LINKS = {
    "self": f"/v1/purchases/{ID}",
    "events": f"/v1/purchases/{ID}/events",
    "cancel": f"/v1/purchases/{ID}/cancel",
}
PENDING = {"purchase_id": ID, "product_id": "tea", "status": "pending", "links": _LINKS}
RESERVED = {
    "purchase_id": ID,
    "status": "reserved",
    "version": 2,
    "product_id": "tea",
    "quantity": 1,
    "reason": None,
    "reservation_no": 1,
    "price": {"unit_minor": 1990, "total_minor": 1990, "currency": "EUR"},
    "hold_until": "2026-11-21T12:01:00.000Z",
    "changed_at": AT,
    "refund": "none",
    "log_position": {"partition": 4, "offset": 17, "index": 0},
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "links": _LINKS,
}
DECLINED = RESERVED | {"status": "released", "version": 3, "reason": "payment_declined", "hold_until": None}
CANCELLING = {"purchase_id": ID, "product_id": "tea", "status": "reserved", "links": _LINKS}
PRODUCT = {
    "product_id": "tea",
    "name": "First flush",
    "status": "open",
    "available": 2,
    "may_reopen": True,
    "stock": 3,
    "unit_price_minor": 1990,
    "currency": "EUR",
    "per_buyer_limit": 1,
    "hold_ms": 60_000,
    "opens_at": None,
    "closes_at": None,
    "server_time": AT,
}
ORDER = DECLINED | {"buyer_id": "b5d0cf7c3e9bd6a0a1ad2d4d3a1f2bc11"}
