"""The operators' routes for orders: all of them in a list with filters, and their cancellation, one or a whole product.

Cancelling is a command to the order-writer; 202 means that the log has it. The orders show the result.
"""

import secrets
from functools import partial
from typing import Annotated, Final

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from gateway.admission import purchase_request
from gateway.admission.command_producer import Commands
from gateway.api import models, views
from gateway.api.admin_products import PRODUCTS_PATH, KeyInHeader, existing_id
from gateway.api.cursors import PAGE_DEFAULT, CursorInQuery, Cursors, LimitInQuery
from gateway.api.openapi import OPERATED, answers, problem_responses
from gateway.api.products import ProductIdInPath
from gateway.api.purchases import PurchaseIdInPath, cancellation
from gateway.auth import ids
from gateway.auth.ids import IdentityKey
from gateway.auth.operators import Access, key_of
from gateway.http import problems
from gateway.http.asgi import require_empty_body
from gateway.read_side.lookup import Lookup
from gateway.read_side.order_queries import Status, orders
from gateway.read_side.postgres import Store
from gateway.read_side.projection import Projection
from service.problem_details import Problem, ProblemError, granted
from stampede_schemas.order_commands import CancelProductRequested, CancelRequested
from stampede_schemas.topics import partition_of

ORDERS_PATH = "/admin/v1/orders"
BuyerInQuery = Annotated[
    str | None,
    # Nothing but a pseudonym: the filter is noted in the audit, where no name may stand.
    Query(pattern=ids.BUYER_ID_PATTERN, description="only of this buyer's pseudonym"),
]
ACTOR: Final = "operator"


class AdminOrders:
    """The handlers, over what they need; `add_to` puts them into an app."""

    def __init__(
        self,
        projection: Projection,
        lookup: Lookup,
        store: Store,
        identity: IdentityKey,
        commands: Commands,
        access: Access,
    ) -> None:
        self._projection, self._lookup, self._store, self._identity = projection, lookup, store, identity
        self._commands, self._access = commands, access
        self._cursors = Cursors(identity.cursor_key)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        for path, handler, method, operation, status, responses in (
            (
                ORDERS_PATH,
                self.page,
                "GET",
                "listOrders",
                200,
                answers(200, views.Orders, "a page", {"orders": [models.ORDER], "next_cursor": None})
                | problem_responses(*OPERATED),
            ),
            (
                ORDERS_PATH + "/{purchase_id}/cancel",
                self.cancel,
                "POST",
                "cancelOrder",
                202,
                answers(202, views.PurchaseAccepted, "in the log", models.CANCELLING)
                | problem_responses(
                    *OPERATED,
                    problems.NOT_FOUND,
                    problems.NOT_CANCELLABLE,
                    problems.OUTCOME_UNKNOWN,
                    problems.UNAVAILABLE,
                ),
            ),
            (
                PRODUCTS_PATH + "/{product_id}/cancel-orders",
                self.cancel_all,
                "POST",
                "cancelOrdersOfProduct",
                202,
                answers(202, views.Cancelling, "in the log", {"product_id": "tea", "status": "cancelling"})
                | problem_responses(*OPERATED, problems.UNKNOWN_PRODUCT, problems.OUTCOME_UNKNOWN),
            ),
        ):
            app.add_api_route(
                path,
                handler,
                methods=[method],
                operation_id=operation,
                tags=["orders"],
                status_code=status,
                responses=responses,
                openapi_extra={"security": [{"operator": []}]},
            )

    async def page(
        self,
        request: Request,
        product_id: Annotated[
            str | None, Query(pattern=purchase_request.PRODUCT_ID_PATTERN, description="only of this product")
        ] = None,
        status: Annotated[Status | None, Query(description="only in this state")] = None,
        buyer_id: BuyerInQuery = None,
        limit: LimitInQuery = PAGE_DEFAULT,
        cursor: CursorInQuery = None,
    ) -> Response:
        """All orders that match, newest first. A cursor is good for the filters it was made for."""
        scope = (ACTOR, ORDERS_PATH, product_id or "", status or "", buyer_id or "")
        query = partial(orders, buyer_id=buyer_id, product_id=product_id, status=status)
        rows, following = await self._cursors.page(self._store, query, limit, cursor, *scope)
        self._access.note(request, "list orders", outcome="shown", product_id=product_id, buyer_id=buyer_id)
        body = views.encoded(views.Orders([views.order(row) for row in rows], following))
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def cancel(self, request: Request, purchase_id: PurchaseIdInPath) -> Response:
        """Undo one order, whoever's it is; a confirmed one is refunded. Asking twice is asking once."""
        known = await self._lookup.find(purchase_id)
        if known is None:
            raise ProblemError(Problem(problems.NOT_FOUND, "There is no order with this id."))
        await require_empty_body(request)
        command = cancellation(known, self._identity.request_id("cancel by operator", known.purchase_id), ACTOR)
        await self._append(request, "cancel order", command, known.purchase_id)
        self._projection.memory.cancel_asked(known.purchase_id)
        return Response(views.cancelling(known), 202, media_type="application/json")

    async def cancel_all(
        self, request: Request, product_id: ProductIdInPath, idempotency_key: KeyInHeader = None
    ) -> Response:
        """Undo every order of a product whose purchase stood in the log when this came, also if it is decided later.

        What is bought afterwards is left alone, so the product may be opened again at once. Close it first: of what is
        bought meanwhile some may be undone as well.
        """
        del idempotency_key  # for the documentation; read below
        await require_empty_body(request)
        known = existing_id(product_id)
        if known not in self._projection.products:
            raise ProblemError(Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id."))
        key = key_of(request) or secrets.token_hex(16)
        request_id = self._identity.request_id(request.state.actor, "cancel all", known, key)
        end = await self._lookup.requests_end(partition_of(known))
        if end is None:
            detail = "Where the log ends is not known now; nothing was done."
            raise ProblemError(Problem(problems.UNAVAILABLE, detail, retry_after_s=1))
        command = CancelProductRequested(request_id=request_id, product_id=known, actor=ACTOR, requests_end=end)
        await self._append(request, "cancel orders of product", command, known)
        return Response(views.encoded(views.Cancelling(known, "cancelling")), 202, media_type="application/json")

    async def _append(
        self, request: Request, action: str, command: CancelRequested | CancelProductRequested, key: str
    ) -> None:
        refused = await self._commands.append(command, key)
        outcome = "accepted" if refused is None else refused.kind.slug
        self._access.note(request, action, of=key, request_id=command.request_id, outcome=outcome)
        granted(refused)
