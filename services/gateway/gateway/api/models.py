"""The bodies that operators send, as models that check them; and an example of each answer, for the descriptions.

The shapes of answers are those of `views.py`; what buyers and payment providers send is in `purchase_request.py` and
`webhook_signature.py`.
"""

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from gateway.admission import purchase_request
from stampede_schemas.identifiers import HOLD_MS_MAX, PRICE_MINOR_MAX, QUANTITY_MAX, STOCK_MAX

HOLD_MS_DEFAULT = 120_000
PER_BUYER_LIMIT_DEFAULT = 10
ID = "97ee-08-0f343b0931126a20f133d67c2b018a3b"
AT = "2026-11-21T12:00:00.000Z"

PriceMinor = Annotated[int, Field(ge=0, le=PRICE_MINOR_MAX, strict=True, examples=[1990])]
HoldMs = Annotated[int, Field(ge=1, le=HOLD_MS_MAX, strict=True, examples=[60_000])]
PerBuyerLimit = Annotated[int, Field(ge=1, le=QUANTITY_MAX, strict=True, examples=[2])]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProductToList(_Strict):
    """A product to put on sale. Instants are RFC 3339 with an offset; an absent end of the window is open."""

    product_id: Annotated[str, Field(pattern=purchase_request.PRODUCT_ID_PATTERN, examples=["tea"])]
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
    """A change of at least one thing; absent fields stay, and null is no value: a window cannot be taken back."""

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
