"""A buyer's purchases: lists, states, events, cancellation. FastAPI routes; also documents the POST that buys.

Nobody but its buyer sees a purchase: to others it does not exist.
"""

from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.responses import Response

from gateway.admission import purchase_request
from gateway.admission.command_producer import Commands
from gateway.api import models, sse, views
from gateway.api.cursors import PAGE_DEFAULT, CursorInQuery, Cursors, LimitInQuery
from gateway.api.openapi import ANYWHERE, WITH_BODY, answers, described_by, event_stream, key_header, problem_responses
from gateway.api.sse import EventStream, PurchaseFeed, Streams
from gateway.auth.authenticator import Authenticator
from gateway.auth.ids import IdentityKey
from gateway.http import problems, requests
from gateway.http.asgi import require_empty_body
from gateway.read_side.lookup import Lookup
from gateway.read_side.order_queries import orders
from gateway.read_side.postgres import Store
from gateway.read_side.projection import Projection
from gateway.read_side.purchase_memory import newest
from gateway.read_side.purchase_state import Ordered, Purchase, Rejected, buyer_of, may_change
from service.problem_details import Problem, ProblemError, granted
from stampede_schemas.identifiers import BuyerId, RequestId
from stampede_schemas.order_commands import CancelRequested

_SIGNED_IN: dict[str, Any] = {"security": [{"token": []}, {"demoUser": []}]}
_ORDERED = {"required": True, "content": {"application/json": described_by(purchase_request.PurchaseOrder)}}
_MINE = (problems.UNAUTHENTICATED, problems.NOT_FOUND, *ANYWHERE)
_PURCHASE_PROBLEMS = (
    problems.KEY_INVALID,
    problems.UNAUTHENTICATED,
    problems.UNKNOWN_PRODUCT,
    problems.SOLD_OUT,
    problems.NOT_OPEN,
    problems.REJECTED,
    problems.IN_FLIGHT,
    problems.KEY_REUSED,
    problems.RATE_LIMITED,
    problems.OUTCOME_UNKNOWN,
)

PurchaseIdInPath = Annotated[str, Path(description="as the purchase's Location names it", examples=[models.ID])]


class BuyersApi:
    """The handlers, over what they need; `add_to` puts them into an app."""

    def __init__(
        self,
        projection: Projection,
        lookup: Lookup,
        store: Store,
        identity: IdentityKey,
        authenticator: Authenticator,
        commands: Commands,
        streams: Streams,
        purchases: PurchaseFeed,
    ) -> None:
        self._projection, self._lookup, self._store, self._identity = projection, lookup, store, identity
        self._authenticator, self._commands, self._streams, self._purchases = (
            authenticator,
            commands,
            streams,
            purchases,
        )
        self._cursors = Cursors(identity.cursor_key)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route(
            views.PURCHASES_PATH,
            _document_purchase,
            methods=["POST"],
            operation_id="purchase",
            tags=["purchases"],
            status_code=202,
            responses=answers(202, views.PurchaseAccepted, "in the log", models.PENDING, Location="the purchase")
            | answers(201, views.PurchaseState, "reserved, or confirmed already (`Prefer: wait`)", models.RESERVED)
            | problem_responses(*_PURCHASE_PROBLEMS, *WITH_BODY),
            openapi_extra=_SIGNED_IN | {"requestBody": _ORDERED},
        )
        app.add_api_route(
            views.PURCHASES_PATH,
            self.own_purchases,
            operation_id="listPurchases",
            tags=["purchases"],
            responses=answers(200, views.Purchases, "a page", {"purchases": [models.RESERVED], "next_cursor": None})
            | problem_responses(problems.UNAUTHENTICATED, *ANYWHERE),
            openapi_extra=_SIGNED_IN,
        )
        one = views.PURCHASES_PATH + "/{purchase_id}"
        app.add_api_route(
            one,
            self.purchase,
            operation_id="getPurchase",
            tags=["purchases"],
            responses=answers(200, views.PurchaseState, "the purchase as it is now", models.DECLINED)
            | problem_responses(*_MINE),
            openapi_extra=_SIGNED_IN,
        )
        app.add_api_route(
            one + "/events",
            self.purchase_events,
            operation_id="watchPurchase",
            response_class=Response,
            tags=["purchases"],
            responses=event_stream("each state as an event named like its status, `id` its version")
            | {204: {"description": "nothing will follow what you have seen; do not connect again"}}
            | problem_responses(problems.RATE_LIMITED, *_MINE),
            openapi_extra=_SIGNED_IN,
        )
        app.add_api_route(
            one + "/cancel",
            self.cancel,
            methods=["POST"],
            operation_id="cancelPurchase",
            tags=["purchases"],
            status_code=202,
            responses=answers(202, views.PurchaseAccepted, "in the log", models.CANCELLING, Location="the purchase")
            | problem_responses(problems.NOT_CANCELLABLE, problems.OUTCOME_UNKNOWN, *_MINE, *WITH_BODY),
            openapi_extra=_SIGNED_IN,
        )

    async def own_purchases(
        self, request: Request, limit: LimitInQuery = PAGE_DEFAULT, cursor: CursorInQuery = None
    ) -> Response:
        """The caller's purchases, newest first. One shows here once it is in the database, soon after its decision."""
        buyer_id = await self._buyer(request)
        query, scope = partial(orders, buyer_id=buyer_id), (buyer_id, views.PURCHASES_PATH)
        rows, following = await self._cursors.page(self._store, query, limit, cursor, *scope)
        newer = [newest(self._projection.purchase(row.purchase_id), row) for row in rows]
        body = views.encoded(views.Purchases([views.purchase_state(one) for one in newer], following))
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def purchase(
        self,
        request: Request,
        purchase_id: PurchaseIdInPath,
        wait: Annotated[int, Query(ge=0, le=requests.WAIT_S_MAX, description="seconds")] = 0,
        version: Annotated[int | None, Query(ge=0, le=2**31, description="what is known already")] = None,
    ) -> Response:
        """A purchase of the caller. With `wait`, ends at the first change after `version` (default: now)."""
        _, known = await self._own(request, purchase_id)
        if wait:
            seen = known.version if version is None else version
            known = await self._lookup.change(purchase_id, seen, wait) or known
        headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if may_change(known) else {})
        return Response(views.purchase(known), media_type="application/json", headers=headers)

    async def purchase_events(
        self,
        request: Request,
        purchase_id: PurchaseIdInPath,
        last_event_id: Annotated[str | None, Header(description="the last `id` seen: go on behind it")] = None,
    ) -> Response:
        """The life of a purchase as server-sent events; ends with its last one.

        Each event is the whole purchase, so states that passed while nobody listened are not sent. `hold_until`
        may still be null in the event of a reservation.
        """
        buyer_id, known = await self._own(request, purchase_id)
        seen = sse.last_event_id(last_event_id)
        if known.version <= seen and not may_change(known):
            return Response(status_code=204)
        granted(self._streams.acquire(buyer_id))
        return EventStream(self._purchases.frames(known.purchase_id, seen), self._streams, buyer_id)

    async def cancel(self, request: Request, purchase_id: PurchaseIdInPath) -> Response:
        """Ask for a purchase to be undone: units go back on sale, money back to the buyer. Asking twice is asking once.

        202 means that the command is in the log; what becomes of it shows in the purchase. No body is needed.
        """
        buyer_id, known = await self._own(request, purchase_id)
        await require_empty_body(request)
        command = cancellation(known, self._identity.request_id("cancel", known.purchase_id), buyer_id)
        granted(await self._commands.append(command, known.purchase_id))
        self._projection.memory.cancel_asked(known.purchase_id)
        headers = {"location": views.location(known.purchase_id), "cache-control": "no-store"}
        return Response(views.cancelling(known), 202, media_type="application/json", headers=headers)

    async def _buyer(self, request: Request) -> BuyerId:
        subject = granted(await self._authenticator.subject(requests.pick(request.headers.raw)))
        return self._identity.buyer_id(subject)

    async def _own(self, request: Request, purchase_id: str) -> tuple[BuyerId, Purchase]:
        buyer_id = await self._buyer(request)
        known = await self._lookup.find(purchase_id)
        if known is None or buyer_of(known) != buyer_id:
            raise ProblemError(Problem(problems.NOT_FOUND, "You have no purchase with this id."))
        return buyer_id, known


def cancellation(known: Purchase, request_id: RequestId, actor: str) -> CancelRequested:
    """The command that undoes a purchase. Raises ProblemError: it has ended."""
    if isinstance(known, Rejected) or (isinstance(known, Ordered) and known.status == "released"):
        extra = {"purchase_status": known.status, "reason": known.reason}
        raise ProblemError(Problem(problems.NOT_CANCELLABLE, f"The purchase is {known.status} already.", extra=extra))
    return CancelRequested(request_id=request_id, purchase_id=known.purchase_id, actor=actor)


async def _document_purchase(  # its arguments are the documentation
    idempotency_key: Annotated[str, key_header("a new one for each new purchase", "my-first")],  # noqa: ARG001
    prefer: Annotated[  # noqa: ARG001
        str | None, Header(description="wait=N, at most 5 s: answer with the decision; respond-async: do not wait")
    ] = None,
) -> None:
    """Buy. 202 once the log has acknowledged; the same key and body get the same answer, for ever."""
    raise AssertionError("answered by gateway.api.buy before FastAPI sees it")
