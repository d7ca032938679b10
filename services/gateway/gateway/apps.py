"""The two FastAPI apps, put together from their parts: what buyers see and what operators see."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from fastapi import Depends, FastAPI

from gateway import webhook
from gateway.access import Access
from gateway.admission import IdentityKey
from gateway.appender import Appender
from gateway.buyers import BuyersApi
from gateway.catalogue import Catalogue
from gateway.commands import Commands
from gateway.docs import add_docs
from gateway.events import PurchaseFeed, SaleFeed, Streams
from gateway.identity import Authenticator
from gateway.lookup import Lookup
from gateway.operators import OperatorsApi
from gateway.order_desk import OrderDesk
from gateway.payments import PaymentReports
from gateway.projection import Projection
from gateway.rest import Probes, add_problem_handlers
from gateway.store import Store
from gateway.tail import BrokerClock, Watchers

T = TypeVar("T")
_BUYERS: dict[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "who buys"},
    "demoUser": {"type": "apiKey", "in": "header", "name": "X-User-Id", "description": "demonstrations only"},
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": webhook.SIGNATURE_HEADER,
        "description": "`t=<seconds since the epoch>,v1=<hex>`; v1 is HMAC-SHA256 of `<t>.<body>`",
    },
}
_BUYERS_TAGS = {
    "products": "what is on sale, and what is left of it",
    "purchases": "buying, and what becomes of it",
    "payments": "what payment providers report",
}
_OPERATORS_TAGS = {"products": "what is on sale", "orders": "what became of purchases"}
_OPERATORS: dict[str, Any] = {
    "operator": {"type": "http", "scheme": "bearer", "description": "the operators' key, or a token with role `admin`"}
}


class Parts(NamedTuple):
    """What the routes work with."""

    projection: Projection
    watchers: Watchers
    clock: BrokerClock
    store: Store
    lookup: Lookup
    identity: IdentityKey
    who: Authenticator
    appender: Appender
    commands: Commands
    streams: Streams
    sale: SaleFeed


def buyers_app(parts: Parts, webhook_secrets: Sequence[str], probes: Probes) -> FastAPI:
    """What buyers see."""
    projection, watchers, clock, store, lookup, identity, who, _, commands, streams, sale = parts
    feed = PurchaseFeed(projection, watchers, lookup)
    app = _buyers_app(
        Catalogue(projection, clock, streams, sale),
        BuyersApi(projection, lookup, store, identity, who, commands, streams, feed),
        PaymentReports(commands, webhook_secrets),
    )
    probes.add_to(app)
    return app


def operators_app(parts: Parts, key_sha256: str) -> FastAPI:
    """What operators see; every route is theirs alone."""
    projection, watchers, clock, store, lookup, identity, who, appender, commands, _, _ = parts
    access = Access(key_sha256, who, identity)
    return _operators_app(
        access,
        OperatorsApi(projection, watchers, appender, identity, clock, access),
        OrderDesk(projection, lookup, store, identity, commands, access),
    )


def described() -> dict[str, FastAPI]:
    """Both apps by the name of the file that describes them, with nothing behind their routes."""
    return {
        "openapi.json": _buyers_app(_bare(Catalogue), _bare(BuyersApi), _bare(PaymentReports)),
        "openapi-admin.json": _operators_app(_bare(Access), _bare(OperatorsApi), _bare(OrderDesk)),
    }


def _buyers_app(catalogue: Catalogue, buyers: BuyersApi, payments: PaymentReports) -> FastAPI:
    app = _app("Stampede", "Buy what there is, and watch what becomes of it", _BUYERS, _BUYERS_TAGS)
    for part in (catalogue, buyers, payments):
        part.add_to(app)
    return app


def _operators_app(access: Access, products: OperatorsApi, orders: OrderDesk) -> FastAPI:
    app = _app("Stampede operators", "Put products on sale, and look after orders", _OPERATORS, _OPERATORS_TAGS, access)
    orders.add_to(app)  # first: `cancel-orders` is no action of a product
    products.add_to(app)
    return app


def _app(
    title: str, summary: str, schemes: dict[str, Any], tags: dict[str, str], access: Access | None = None
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
        dependencies=[Depends(access.authorise)] if access else [],
    )
    add_problem_handlers(app)
    add_docs(app, schemes)
    return app


def _bare(kind: type[T]) -> T:
    return kind.__new__(kind)  # its routes are bound methods: describing them needs no more
