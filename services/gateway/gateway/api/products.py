"""Products as everybody sees them, and the sale live. FastAPI routes, answered from the projection.

Must not be slow: this is where a crowd polls.
"""

from typing import Annotated

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response

from gateway.api import models, sse, views
from gateway.api.openapi import ANYWHERE, OPEN, Responses, answers, event_stream, problem_responses
from gateway.api.sse import EventStream, SaleFeed, Streams
from gateway.http import problems
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.projection import Projection
from service.problem_details import Problem, ProblemError, granted
from stampede_schemas.identifiers import ProductId

CACHE_S = 1
_FRESH = {"cache-control": f"public, max-age={CACHE_S}"}
ProductIdInPath = Annotated[str, Path(description="which product", examples=["tea"])]


class Catalogue:
    """The handlers, over what they need; `add_to` puts them into an app."""

    def __init__(self, projection: Projection, clock: BrokerClock, streams: Streams, sale: SaleFeed) -> None:
        self._projection, self._clock, self._streams, self._sale = projection, clock, streams, sale

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        unchanged: Responses = {304: {"description": "what you have is still good"}}
        tag = {"ETag": "of these very bytes", "Cache_Control": "for how long not to ask again"}
        app.get(
            "/v1/products",
            operation_id="listProducts",
            tags=["products"],
            responses=answers(
                200, views.Products, "all products", {"products": [models.PRODUCT], "server_time": models.AT}, **tag
            )
            | unchanged
            | problem_responses(*ANYWHERE),
            openapi_extra=OPEN,
        )(self.products)
        app.get(
            "/v1/products/{product_id}",
            operation_id="getProduct",
            tags=["products"],
            responses=answers(200, views.ProductState, "the product", models.PRODUCT, **tag)
            | unchanged
            | problem_responses(problems.UNKNOWN_PRODUCT, *ANYWHERE),
            openapi_extra=OPEN,
        )(self.product)
        app.get(
            "/v1/sale/events",
            operation_id="watchSale",
            response_class=Response,
            tags=["products"],
            responses=event_stream("`sale`: everything; then `changes`: what has changed, at most ten a second")
            | problem_responses(problems.OVERLOADED),
            openapi_extra=OPEN,
        )(self.sale_events)

    async def products(self, request: Request) -> Response:
        """All products with their availability."""
        now_ms = self._clock.shown_ms()
        known = sorted(self._projection.products.values(), key=lambda product: product.product_id)
        shown = [views.product(product, now_ms) for product in known if product.status != "retired"]
        whole = views.Products(shown, views.instant(now_ms))
        return _cacheable(request, views.etag(shown, now_ms), whole)

    async def product(self, request: Request, product_id: ProductIdInPath) -> Response:
        """One product with its availability."""
        known = self._projection.products.get(ProductId(product_id))
        if known is None:
            raise ProblemError(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
        now_ms = self._clock.shown_ms()
        shown = views.product(known, now_ms)
        return _cacheable(request, views.etag([shown], now_ms), shown)

    async def sale_events(self) -> Response:
        """The sale live, for everybody: stock, what is decided, and how fast. Counts only."""
        granted(self._streams.acquire(sse.EVERYBODY))
        return EventStream(self._sale.frames(), self._streams, sse.EVERYBODY)


def _cacheable(request: Request, tag: str, shown: object) -> Response:
    tags = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
    match = next((one for one in tags if one == "*" or views.same_content(one, tag)), None)
    if match is not None:
        return Response(status_code=304, headers=_FRESH | {"etag": tag if match == "*" else match})
    return Response(views.encoded(shown), media_type="application/json", headers=_FRESH | {"etag": tag})
