"""The buyers' API apart from the purchase POST: products, purchases, health. FastAPI; also documents the POST.

Must not be slow where buyers poll: products are answered from the projection, purchases mostly so.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from gateway import admission, problems, views
from gateway.admission import IdentityKey
from gateway.identity import Authenticator
from gateway.lookup import Lookup
from gateway.problems import Problem, Refused
from gateway.projection import Projection, PurchaseStatus, SaleStatus
from gateway.rest import add_problem_handlers, health, problem_responses
from gateway.tail import BrokerClock
from stampede_schemas.identifiers import QUANTITY_MAX, ProductId
from telemetry.ops import Checks

CACHE_S = 1
_FRESH = {"cache-control": f"public, max-age={CACHE_S}"}


class PurchaseOrder(BaseModel):
    """What to buy. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")
    product_id: Annotated[str, Field(pattern=admission.PRODUCT_ID_PATTERN)]
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    payment_method: Annotated[str, Field(pattern=admission.PAYMENT_METHOD_PATTERN)] = admission.PAYMENT_METHOD_DEFAULT


class Links(BaseModel):
    """Where to look next."""

    self: str


class PendingPurchase(BaseModel):
    """Accepted: it is in the log, and will be decided."""

    purchase_id: str
    status: Literal["pending"]
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
    """A purchase now. `version` rises with every change."""

    purchase_id: str
    status: PurchaseStatus
    version: int
    product_id: str | None
    quantity: int
    reason: str | None
    reservation_no: int | None
    price: Price | None
    hold_until: str | None
    refund: Literal["none", "due", "done"]
    log_position: LogPosition | None
    trace_id: str | None
    links: Links


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
    opens_at: str | None
    closes_at: str | None
    server_time: str


class Products(BaseModel):
    """All products, by id."""

    products: list[ProductState]
    server_time: str


class BuyersApi:
    """The handlers, over what they need; `build` makes the app."""

    def __init__(
        self,
        projection: Projection,
        lookup: Lookup,
        identity: IdentityKey,
        authenticator: Authenticator,
        clock: BrokerClock,
        live: Callable[[], Checks],
        ready: Callable[[], Checks],
    ) -> None:
        self._projection, self._lookup, self._identity, self._clock = projection, lookup, identity, clock
        self._authenticator, self._live, self._ready = authenticator, live, ready

    def build(self) -> FastAPI:
        """The app; connects to nothing."""
        app = FastAPI(title="Stampede", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
        add_problem_handlers(app)
        purchase: dict[int | str, dict[str, Any]] = {201: {"model": PurchaseState}, 202: {"model": PendingPurchase}}
        unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "unchanged"}}
        app.add_api_route(
            views.PURCHASES_PATH,
            _document_purchase,
            methods=["POST"],
            operation_id="purchase",
            status_code=202,
            responses=purchase | problem_responses(400, 401, 404, 409, 413, 415, 422, 429, 503),
        )
        route = app.get
        route("/v1/products", operation_id="listProducts", response_model=Products)(self.products)
        route(
            "/v1/products/{product_id}",
            operation_id="getProduct",
            response_model=ProductState,
            responses=unchanged | problem_responses(404),
        )(self.product)
        route(
            "/v1/purchases/{purchase_id}",
            operation_id="getPurchase",
            response_model=PurchaseState,
            responses=problem_responses(401, 404, 422, 503),
        )(self.purchase)
        route("/livez", include_in_schema=False)(self.livez)
        route("/readyz", include_in_schema=False)(self.readyz)
        return app

    async def products(self, request: Request) -> Response:
        """All products with their availability."""
        now_ms = self._now_ms()
        known = sorted(self._projection.products.values(), key=lambda product: product.product_id)
        shown = [views.product(product, now_ms, server_time=False) for product in known if product.status != "retired"]
        server_time = views.instant(now_ms)
        whole = {"products": [product | {"server_time": server_time} for product in shown], "server_time": server_time}
        return _cacheable(request, views.etag(shown), whole)

    async def product(self, request: Request, product_id: str) -> Response:
        """One product with its availability."""
        known = self._projection.products.get(ProductId(product_id))
        if known is None:
            raise Refused(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
        now_ms = self._now_ms()
        tag = views.etag(views.product(known, now_ms, server_time=False))
        return _cacheable(request, tag, views.product(known, now_ms))

    async def purchase(
        self,
        request: Request,
        purchase_id: str,
        wait: Annotated[int, Query(ge=0, le=admission.WAIT_S_MAX)] = 0,
        version: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    ) -> Response:
        """A purchase of the caller. With `wait`, ends at the first change after `version` (default: now)."""
        subject = await self._authenticator.subject(admission.pick(request.headers.raw))
        if isinstance(subject, Problem):
            raise Refused(subject)
        known = await self._lookup.find(purchase_id)
        if known is None or known.buyer_id != self._identity.buyer_id(subject):
            raise Refused(Problem(problems.NOT_FOUND, "You have no purchase with this id."))
        if wait:
            seen = known.version if version is None else version
            known = await self._lookup.change(purchase_id, seen, wait) or known
        headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if known.may_change else {})
        return Response(views.purchase(known), media_type="application/json", headers=headers)

    async def livez(self, request: Request) -> Response:
        """Whether the process works."""
        return health(self._live(), verbose="verbose" in request.query_params)

    async def readyz(self, request: Request) -> Response:
        """Whether to send buyers here."""
        return health(self._ready(), verbose="verbose" in request.query_params)

    def _now_ms(self) -> int:
        return self._clock.now_ms() or int(time.time() * 1000)


def _cacheable(request: Request, tag: str, shown: object) -> Response:
    headers = _FRESH | {"etag": tag}
    asked = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
    if tag in asked or "*" in asked:
        return Response(status_code=304, headers=headers)
    return Response(views.encoded(shown), media_type="application/json", headers=headers)


async def _document_purchase(  # its arguments are the documentation
    order: PurchaseOrder,  # noqa: ARG001
    idempotency_key: Annotated[str, Header(min_length=1, max_length=admission.KEY_LENGTH_MAX)],  # noqa: ARG001
    prefer: Annotated[str | None, Header(description="wait=N, at most 5 s: answer with the decision")] = None,  # noqa: ARG001
) -> PendingPurchase:
    """Buy. 202 once the log has acknowledged; the same key and body get the same answer, for ever."""
    raise AssertionError("answered by gateway.purchase before FastAPI sees it")
