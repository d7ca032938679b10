"""The operators' API, on a listener of its own: products come on sale, change, get more stock.

Every action is a request in the log and is answered with its decision; every action leaves one audit line. Operators
are neither limited nor shed.
"""

import hashlib
import hmac
import logging
import secrets
import time
from datetime import datetime
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway import admission, problems, views
from gateway.admission import IdentityKey
from gateway.appender import Appender
from gateway.buyers import ProductState
from gateway.problems import Problem, Refused
from gateway.projection import OperatorOutcome, Projection
from gateway.rest import add_problem_handlers, problem_responses
from gateway.tail import BrokerClock, Watchers
from stampede_schemas.decisions import Ignored, ProductListed, RestockRejected
from stampede_schemas.identifiers import (
    HOLD_MS_MAX,
    INSTANT_MS_MAX,
    PRICE_MINOR_MAX,
    QUANTITY_MAX,
    STOCK_MAX,
    Millis,
    ProductId,
    RequestId,
)
from stampede_schemas.requests import AnyRequest, ProductChangeRequested, ProductListRequested, RestockRequested

DECISION_S_MAX = 5.0
HOLD_MS_DEFAULT = 120_000
PER_BUYER_LIMIT_DEFAULT = 10
_audit = logging.getLogger("gateway.audit")

PriceMinor = Annotated[int, Field(ge=0, le=PRICE_MINOR_MAX, strict=True)]
HoldMs = Annotated[int, Field(ge=1, le=HOLD_MS_MAX, strict=True)]
PerBuyerLimit = Annotated[int, Field(ge=1, le=QUANTITY_MAX, strict=True)]


class ProductToList(BaseModel):
    """A product to put on sale. Instants are RFC 3339 with an offset; an absent end of the window is open."""

    model_config = ConfigDict(extra="forbid")
    product_id: Annotated[str, Field(pattern=admission.PRODUCT_ID_PATTERN)]
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
    unit_price_minor: PriceMinor
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    stock: Annotated[int, Field(ge=0, le=STOCK_MAX, strict=True)]
    per_buyer_limit: PerBuyerLimit = PER_BUYER_LIMIT_DEFAULT
    hold_ms: HoldMs = HOLD_MS_DEFAULT
    opens_at: AwareDatetime | None = None
    closes_at: AwareDatetime | None = None


class ProductChange(BaseModel):
    """What to change; absent fields stay."""

    model_config = ConfigDict(extra="forbid")
    unit_price_minor: PriceMinor | None = None
    per_buyer_limit: PerBuyerLimit | None = None
    hold_ms: HoldMs | None = None
    opens_at: AwareDatetime | None = None
    closes_at: AwareDatetime | None = None


class Restock(BaseModel):
    """Units to add, or to take away when negative."""

    model_config = ConfigDict(extra="forbid")
    quantity: Annotated[int, Field(ge=-STOCK_MAX, le=STOCK_MAX, strict=True)]


class OperatorsApi:
    """The handlers, over what they need; `build` makes the app."""

    def __init__(
        self,
        projection: Projection,
        watchers: Watchers,
        appender: Appender,
        identity: IdentityKey,
        clock: BrokerClock,
        key_sha256: str,
    ) -> None:
        self._projection, self._watchers, self._appender, self._identity = projection, watchers, appender, identity
        self._clock, self._key_sha256 = clock, key_sha256.lower()

    def build(self) -> FastAPI:
        """The app; connects to nothing."""
        app = FastAPI(
            title="Stampede operators",
            version="1",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            dependencies=[Depends(self._authorise)],
        )
        add_problem_handlers(app)
        told = problem_responses(400, 401, 404, 409, 413, 415, 422, 503)
        base = "/admin/v1/products"
        for path, handler, methods, operation in (
            (base, self.list_product, ["POST"], "listProduct"),
            (base + "/{product_id}", self.change_product, ["PATCH"], "changeProduct"),
            (base + "/{product_id}/restock", self.restock, ["POST"], "restock"),
            (base + "/{product_id}/{action}", self.act, ["POST"], "openCloseOrPause"),
        ):
            app.add_api_route(
                path, handler, methods=methods, operation_id=operation, response_model=ProductState, responses=told
            )
        return app

    async def list_product(self, request: Request, product: ProductToList) -> Response:
        """Put a product on sale: 201, or 200 when it already was with the same content."""
        product_id = ProductId(product.product_id)
        wanted = product.model_dump_json()
        # A second try without a key of its own is the same request only if it asks for the same.
        request_id = self._identity.request_id("list", product_id, self._key(request) or wanted)
        opens, closes = _ms(product.opens_at), _ms(product.closes_at)
        if opens is not None and closes is not None and closes <= opens:
            raise Refused(Problem(problems.INVALID_BODY, "closes_at must be after opens_at."))
        return await self._decide(
            "list",
            ProductListRequested(
                request_id=request_id,
                product_id=product_id,
                name=product.name,
                unit_price_minor=product.unit_price_minor,
                currency=product.currency,
                stock=product.stock,
                per_buyer_limit=product.per_buyer_limit,
                hold_ms=product.hold_ms,
                opens_at_ms=opens,
                closes_at_ms=closes,
            ),
        )

    async def change_product(self, request: Request, product_id: str, change: ProductChange) -> Response:
        """Change price, limit, hold time or window; reservations keep what they were made with."""
        return await self._decide(
            "change",
            ProductChangeRequested(
                request_id=self._request_id(request, "change", product_id),
                product_id=_existing(product_id),
                unit_price_minor=change.unit_price_minor,
                per_buyer_limit=change.per_buyer_limit,
                opens_at_ms=_ms(change.opens_at),
                closes_at_ms=_ms(change.closes_at),
                hold_ms=change.hold_ms,
            ),
        )

    async def restock(self, request: Request, product_id: str, restock: Restock) -> Response:
        """Add or take away units. Needs an Idempotency-Key: adding twice is not adding once."""
        if restock.quantity == 0:
            raise Refused(Problem(problems.INVALID_BODY, "quantity must not be 0."))
        key = self._key(request)
        if key is None:
            raise Refused(Problem(problems.KEY_INVALID, "Send an Idempotency-Key header: a new one for each restock."))
        request_id = self._identity.request_id("restock", product_id, key)
        before = self._projection.outcome(request_id)
        if getattr(before, "quantity", restock.quantity) != restock.quantity:
            raise Refused(Problem(problems.KEY_REUSED, "The first request with this key had another quantity."))
        return await self._decide(
            "restock",
            RestockRequested(request_id=request_id, product_id=_existing(product_id), quantity=restock.quantity),
        )

    async def act(self, request: Request, product_id: str, action: Literal["open", "close", "pause"]) -> Response:
        """Open, close or pause the sale of a product."""
        return await self._decide(
            action,
            ProductChangeRequested(
                request_id=self._request_id(request, action, product_id),
                product_id=_existing(product_id),
                action=action,
            ),
        )

    async def _decide(self, action: str, request: AnyRequest) -> Response:
        request_id, product_id = _ids(request)
        outcome = self._projection.outcome(request_id)
        repeated = outcome is not None
        if outcome is None:
            appended = await self._appender.append(request, None)
            if isinstance(appended, Problem):
                self._note(action, product_id, request_id, appended.kind.slug)
                raise Refused(appended)
            outcome = self._projection.outcome(request_id)
            if outcome is None and await self._watchers.changed(request_id, DECISION_S_MAX):
                outcome = self._projection.outcome(request_id)
        self._note(action, product_id, request_id, "undecided" if outcome is None else type(outcome).__name__)
        return self._answer(product_id, outcome, repeated=repeated)

    def _answer(self, product_id: ProductId, outcome: OperatorOutcome | None, *, repeated: bool) -> Response:
        if outcome is None:
            body = views.encoded({"product_id": product_id, "status": "pending"})
            return Response(body, 202, media_type="application/json")
        if isinstance(outcome, RestockRejected) and outcome.reason != "unknown_product":
            detail = f"The change was rejected ({outcome.reason}); {outcome.available_after} are available."
            raise Refused(Problem(problems.RESTOCK_REJECTED, detail, extra={"reason": outcome.reason}))
        if isinstance(outcome, Ignored) and outcome.reason in ("conflict", "retired"):
            detail = f"The product {product_id} is there with other content, or retired ({outcome.reason})."
            raise Refused(Problem(problems.PRODUCT_CONFLICT, detail, extra={"reason": outcome.reason}))
        product = self._projection.products.get(product_id)
        if product is None:
            raise Refused(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
        now_ms = self._clock.now_ms() or int(time.time() * 1000)
        created = isinstance(outcome, ProductListed) and not repeated
        return Response(
            views.encoded(views.product(product, now_ms)),
            201 if created else 200,
            headers={"location": f"/v1/products/{product_id}"} if created else {},
            media_type="application/json",
        )

    async def _authorise(self, request: Request) -> None:
        given = admission.pick(request.headers.raw).get(b"authorization") or b""
        scheme, _, token = given.partition(b" ")
        digest = hashlib.sha256(token.strip()).hexdigest()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(digest, self._key_sha256):
            _audit.warning("refused", extra={"action": request.method, "path": request.url.path, "outcome": "refused"})
            raise Refused(Problem(problems.UNAUTHENTICATED, "Send Authorization: Bearer with the operators' key."))

    def _key(self, request: Request) -> str | None:
        headers = admission.pick(request.headers.raw)
        if b"idempotency-key" not in headers:
            return None
        key = admission.idempotency_key(headers)
        if isinstance(key, Problem):
            raise Refused(key)
        return key

    def _request_id(self, request: Request, action: str, product_id: str) -> RequestId:
        key = self._key(request) or secrets.token_hex(16)  # setting the same twice is harmless
        return self._identity.request_id(action, product_id, key)

    def _note(self, action: str, product_id: str, request_id: str, outcome: str) -> None:
        told = {"action": action, "product_id": product_id, "request_id": request_id, "outcome": outcome}
        _audit.info("operator action", extra=told)


def _ids(request: AnyRequest) -> tuple[RequestId, ProductId]:
    assert isinstance(request, (ProductListRequested, ProductChangeRequested, RestockRequested))
    return request.request_id, request.product_id


def _existing(product_id: str) -> ProductId:
    if not admission.is_product_id(product_id):
        raise Refused(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
    return ProductId(product_id)


def _ms(at: datetime | None) -> Millis | None:
    if at is None:
        return None
    ms = round(at.timestamp() * 1000)
    if not 0 <= ms <= INSTANT_MS_MAX:
        raise Refused(Problem(problems.INVALID_BODY, "An instant must lie between the years 1970 and 9999."))
    return Millis(ms)
