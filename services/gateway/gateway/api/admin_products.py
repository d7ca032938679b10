"""The operators' routes for products: they come on sale, change, get more stock, and leave.

Every action is a request in the log and is answered with its decision; every action leaves one audit line. Operators
are neither limited nor shed.
"""

import secrets
from datetime import datetime
from typing import Annotated, Literal

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response
from msgspec.structs import replace

from gateway.admission import purchase_request
from gateway.admission.batcher import RequestBatcher
from gateway.api import models, views
from gateway.api.openapi import OPERATED, answers, key_header, problem_responses
from gateway.api.products import ProductIdInPath
from gateway.auth.ids import IdentityKey
from gateway.auth.operators import Access, key_of
from gateway.http import problems
from gateway.http.asgi import require_empty_body
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.follower import Waiters
from gateway.read_side.projection import OperatorOutcome, Projection
from service.problem_details import Problem, ProblemError
from stampede_schemas.codec import encode
from stampede_schemas.decisions import Ignored, ProductListed, RestockRejected
from stampede_schemas.identifiers import INSTANT_MS_MAX, Millis, ProductId, RequestId
from stampede_schemas.requests import (
    ProductChangeRequested,
    ProductListRequested,
    ProductRetireRequested,
    RestockRequested,
)

DECISION_S_MAX = 5.0
PRODUCTS_PATH = "/admin/v1/products"
ProductRequest = ProductListRequested | ProductChangeRequested | ProductRetireRequested | RestockRequested
UNNAMED = RequestId("")  # of a request whose id is yet to be derived from its content

KeyInHeader = Annotated[str | None, key_header("the same key is the same action, done once", "list-tea")]
RequiredKeyInHeader = Annotated[
    str, key_header("a new one for each new action: adding twice is not adding once", "restock-1")
]


class AdminProducts:
    """The handlers, over what they need; `add_to` puts them into an app."""

    def __init__(
        self,
        projection: Projection,
        waiters: Waiters,
        batcher: RequestBatcher,
        identity: IdentityKey,
        clock: BrokerClock,
        access: Access,
    ) -> None:
        self._projection, self._waiters, self._batcher, self._identity = projection, waiters, batcher, identity
        self._clock, self._access = clock, access

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        done = (
            answers(200, views.ProductState, "done, or done before", models.PRODUCT)
            | answers(202, views.Undecided, "in the log, not decided yet", {"product_id": "tea", "status": "pending"})
        )  # fmt: skip
        created = answers(201, views.ProductState, "on sale", models.PRODUCT, Location="where buyers see it")
        kinds = (*OPERATED, problems.PRODUCT_CONFLICT, problems.OUTCOME_UNKNOWN)
        keyed, known = (*kinds, problems.KEY_REUSED), (*kinds, problems.UNKNOWN_PRODUCT)
        one = PRODUCTS_PATH + "/{product_id}"
        for path, handler, method, operation, responses in (
            (PRODUCTS_PATH, self.list_product, "POST", "listProduct", created | problem_responses(*keyed)),
            (one, self.change_product, "PATCH", "changeProduct", problem_responses(*known, problems.KEY_REUSED)),
            (
                one + "/restock",
                self.restock,
                "POST",
                "restockProduct",
                problem_responses(*known, problems.KEY_REUSED, problems.RESTOCK_REJECTED),
            ),
            (one + "/{action}", self.act, "POST", "actOnProduct", problem_responses(*known)),
        ):
            app.add_api_route(
                path,
                handler,
                methods=[method],
                operation_id=operation,
                tags=["products"],
                responses=done | responses,
                openapi_extra={"security": [{"operator": []}]},
            )

    async def list_product(
        self, request: Request, product: models.ProductToList, idempotency_key: KeyInHeader = None
    ) -> Response:
        """Put a product on sale: 201, or 200 when it already was with the same content."""
        del idempotency_key  # for the documentation; read below, where sending it twice is noticed
        product_id = ProductId(product.product_id)
        opens, closes = _ms(product.opens_at), _ms(product.closes_at)
        check_window(opens, closes)
        return await self._decide(
            request,
            "list",
            ProductListRequested(
                request_id=UNNAMED,
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

    async def change_product(
        self,
        request: Request,
        product_id: ProductIdInPath,
        change: models.ProductChange,
        idempotency_key: KeyInHeader = None,
    ) -> Response:
        """Change price, limit, hold time or window; reservations keep what they were made with."""
        del idempotency_key
        known, opens, closes = existing_id(product_id), _ms(change.opens_at), _ms(change.closes_at)
        if (product := self._projection.products.get(known)) is not None:
            check_window(
                product.opens_at_ms if opens is None else opens, product.closes_at_ms if closes is None else closes
            )
        return await self._decide(
            request,
            "change",
            ProductChangeRequested(
                request_id=UNNAMED,
                product_id=known,
                unit_price_minor=change.unit_price_minor,
                per_buyer_limit=change.per_buyer_limit,
                opens_at_ms=opens,
                closes_at_ms=closes,
                hold_ms=change.hold_ms,
            ),
        )

    async def restock(
        self,
        request: Request,
        product_id: ProductIdInPath,
        restock: models.Restock,
        idempotency_key: RequiredKeyInHeader,
    ) -> Response:
        """Add or take away units. Needs an Idempotency-Key: adding twice is not adding once."""
        del idempotency_key
        if restock.quantity == 0:
            raise ProblemError(Problem(problems.INVALID_BODY, "quantity must not be 0."))
        if key_of(request) is None:
            raise ProblemError(
                Problem(problems.KEY_INVALID, "Send an Idempotency-Key header: a new one for each restock.")
            )
        asked = RestockRequested(request_id=UNNAMED, product_id=existing_id(product_id), quantity=restock.quantity)
        return await self._decide(request, "restock", asked)

    async def act(
        self,
        request: Request,
        product_id: ProductIdInPath,
        action: Annotated[Literal["open", "close", "pause", "retire"], Path(description="what to do")],
        idempotency_key: KeyInHeader = None,
    ) -> Response:
        """Open, close or pause the sale of a product; or retire it for good: its reservations are forgotten."""
        del idempotency_key
        await require_empty_body(request)
        known = existing_id(product_id)
        asked: ProductRequest
        if action == "retire":
            asked = ProductRetireRequested(request_id=UNNAMED, product_id=known)
        else:
            asked = ProductChangeRequested(request_id=UNNAMED, product_id=known, action=action)
        return await self._decide(request, action, asked)

    async def _decide(self, request: Request, action: str, content: ProductRequest) -> Response:
        request_id = self._request_id(request, action, content)
        asked = replace(content, request_id=request_id)
        outcome = self._projection.outcome(request_id)
        repeated = outcome is not None
        if outcome is None:
            appended = await self._batcher.append(asked)
            if isinstance(appended, Problem):
                self._note(request, action, asked, appended.kind.slug)
                raise ProblemError(appended)
            outcome = self._projection.outcome(request_id)
            if outcome is None and await self._waiters.changed(request_id, DECISION_S_MAX):
                outcome = self._projection.outcome(request_id)
        self._note(request, action, asked, "undecided" if outcome is None else type(outcome).__name__)
        return self._answer(content, outcome, repeated=repeated)

    def _answer(self, content: ProductRequest, outcome: OperatorOutcome | None, *, repeated: bool) -> Response:
        product_id = content.product_id
        if outcome is None:
            body = views.encoded(views.Undecided(product_id, "pending"))
            return Response(body, 202, media_type="application/json")
        if isinstance(outcome, RestockRejected) and outcome.reason != "unknown_product":
            detail = f"The change was rejected ({outcome.reason}); {outcome.available_after} are available."
            raise ProblemError(Problem(problems.RESTOCK_REJECTED, detail, extra={"reason": outcome.reason}))
        if isinstance(outcome, Ignored) and outcome.mismatch:
            raise ProblemError(
                Problem(problems.KEY_REUSED, "The first request with this key asked for something else.")
            )
        if isinstance(outcome, Ignored) and outcome.reason in ("conflict", "retired"):
            raise ProblemError(_conflict(product_id, outcome.reason))
        product = self._projection.products.get(product_id)
        if product is None:
            raise ProblemError(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
        if isinstance(content, ProductListRequested) and product.status == "retired":
            raise ProblemError(_conflict(product_id, "retired"))
        now_ms = self._clock.shown_ms()
        created = isinstance(outcome, ProductListed) and not repeated
        return Response(
            views.encoded(views.product(product, now_ms)),
            201 if created else 200,
            headers={"location": f"/v1/products/{product_id}"} if created else {},
            media_type="application/json",
        )

    def _request_id(self, request: Request, action: str, content: ProductRequest) -> RequestId:
        """One for each operator, action, product and key.

        Without a key a second listing is the same request only if it asks for the same; setting twice is harmless.
        """
        told = encode(content)
        key = key_of(request) or (told.decode() if action == "list" else secrets.token_hex(16))
        actor = request.state.actor
        return self._identity.request_id(actor, action, content.product_id, key, content=told)

    def _note(self, request: Request, action: str, asked: ProductRequest, outcome: str) -> None:
        self._access.note(request, action, product_id=asked.product_id, request_id=asked.request_id, outcome=outcome)


def existing_id(product_id: str) -> ProductId:
    """A product id in its one spelling. Raises ProblemError: no product can have it."""
    if not purchase_request.is_product_id(product_id):
        raise ProblemError(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
    return ProductId(product_id)


def _conflict(product_id: ProductId, reason: str) -> Problem:
    detail = f"The product {product_id} is there with other content, or retired ({reason})."
    return Problem(problems.PRODUCT_CONFLICT, detail, extra={"reason": reason})


def check_window(opens: int | None, closes: int | None) -> None:
    """Raise ProblemError if a sale would close before it opens."""
    if opens is not None and closes is not None and closes <= opens:
        raise ProblemError(Problem(problems.INVALID_BODY, "closes_at must be after opens_at."))


def _ms(at: datetime | None) -> Millis | None:
    if at is None:
        return None
    ms = round(at.timestamp() * 1000)
    if not 0 <= ms <= INSTANT_MS_MAX:
        raise ProblemError(Problem(problems.INVALID_BODY, "An instant must lie between the years 1970 and 9999."))
    return Millis(ms)
