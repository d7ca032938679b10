"""The two FastAPI apps, put together from their parts: one for buyers, one for operators."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI
from msgspec import Struct

from gateway.admission import purchase_request
from gateway.admission.batcher import RequestBatcher
from gateway.admission.command_producer import Commands
from gateway.api import views, webhook_signature
from gateway.api.admin_orders import AdminOrders
from gateway.api.admin_products import AdminProducts
from gateway.api.docs import add_docs
from gateway.api.errors import add_handlers
from gateway.api.payment_reports import PaymentReports
from gateway.api.products import Catalogue
from gateway.api.purchases import BuyersApi
from gateway.api.sse import PurchaseFeed, SaleFeed, Streams
from gateway.auth.authenticator import Authenticator
from gateway.auth.ids import IdentityKey
from gateway.auth.operators import Access
from gateway.http.health import Probes
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.follower import Waiters
from gateway.read_side.lookup import Lookup
from gateway.read_side.postgres import Store
from gateway.read_side.projection import Projection


class Parts(NamedTuple):
    """The parts that the routes work with."""

    projection: Projection
    waiters: Waiters
    clock: BrokerClock
    store: Store
    lookup: Lookup
    identity: IdentityKey
    who: Authenticator
    batcher: RequestBatcher
    commands: Commands
    streams: Streams
    sale: SaleFeed


def buyers_app(parts: Parts, webhook_secrets: Sequence[str], probes: Probes) -> FastAPI:
    """The app of buyers."""
    app = _buyers_app(
        Catalogue(parts.projection, parts.clock, parts.streams, parts.sale),
        BuyersApi(
            parts.projection,
            parts.lookup,
            parts.store,
            parts.identity,
            parts.who,
            parts.commands,
            parts.streams,
            PurchaseFeed(parts.projection, parts.waiters, parts.lookup),
        ),
        PaymentReports(parts.commands, webhook_secrets),
    )
    probes.add_to(app)
    return app


def operators_app(parts: Parts, key_sha256: str) -> FastAPI:
    """The app of operators; every route is theirs alone."""
    access = Access(key_sha256, parts.who, parts.identity)
    return _operators_app(
        # First: `cancel-orders` is no action of a product.
        AdminOrders(parts.projection, parts.lookup, parts.store, parts.identity, parts.commands, access),
        AdminProducts(parts.projection, parts.waiters, parts.batcher, parts.identity, parts.clock, access),
        dependencies=[Depends(access.authorise)],
    )


def described() -> dict[str, FastAPI]:
    """Both apps by the name of the file that describes them, with nothing behind their routes."""
    new = object.__new__  # their routes are bound methods: describing them needs no more
    return {
        "openapi.json": _buyers_app(new(Catalogue), new(BuyersApi), new(PaymentReports)),
        "openapi-admin.json": _operators_app(new(AdminOrders), new(AdminProducts)),
    }


def _app(
    title: str,
    summary: str,
    security_schemes: dict[str, Any],
    tags: dict[str, str],
    shapes: tuple[type[Struct], ...],  # of bodies
    *handlers: Catalogue | BuyersApi | PaymentReports | AdminOrders | AdminProducts,
    dependencies: Sequence[Any] = (),
) -> FastAPI:
    app = FastAPI(
        title=title,
        version="1",
        summary=summary,
        description="Every no is a problem document (RFC 9457); its `retryable` says whether to try again, and its "
        "`type` is the address of a page that says what to do. Beside what is said of each route, any may answer 405, "
        "408, 414 or 431.",
        license_info={"name": "MIT", "url": "https://opensource.org/license/mit"},
        openapi_tags=[{"name": name, "description": what} for name, what in sorted(tags.items())],
        servers=[{"url": "/", "description": "this listener"}],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=dependencies,
    )
    add_handlers(app)
    add_docs(app, security_schemes, shapes)
    for each in handlers:
        each.add_to(app)
    return app


_buyers_app = partial(
    _app,
    "Stampede",
    "Buy what there is, and watch what becomes of it",
    {
        "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "who buys"},
        "demoUser": {"type": "apiKey", "in": "header", "name": "X-User-Id", "description": "demonstrations only"},
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": webhook_signature.SIGNATURE_HEADER,
            "description": "`t=<seconds since the epoch>,v1=<hex>`; v1 is HMAC-SHA256 of `<t>.<body>`",
        },
    },
    {
        "products": "what is on sale, and what is left of it",
        "purchases": "buying, and what becomes of it",
        "payments": "what payment providers report",
    },
    (
        purchase_request.PurchaseOrder,
        webhook_signature.PaymentReport,
        views.PurchaseAccepted,
        views.Purchases,
        views.Products,
        views.Reported,
    ),
)
_operators_app = partial(
    _app,
    "Stampede operators",
    "Put products on sale, and look after orders",
    {
        "operator": {
            "type": "http",
            "scheme": "bearer",
            "description": "the operators' key, or a token with role `admin`",
        }
    },
    {"products": "what is on sale", "orders": "what became of purchases"},
    (views.ProductState, views.Undecided, views.Orders, views.PurchaseAccepted, views.Cancelling),
)
