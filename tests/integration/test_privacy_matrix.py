"""Who may do what: every route of the descriptions against every kind of caller (S20)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.builders.gateway import ADMIN_KEY, GatewayProcess
from tests.support.builders.tokens import AUDIENCE, ISSUER, SECRET, Issuer
from tests.support.processes.sale import Sale, buy, listing, order

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"get", "post", "put", "patch", "delete"}
MINE = Issuer("HS256")
# Who asks, in this order: the owner comes last, because what the owner does may end a purchase.
# Their tokens are made when they ask: one that was made with this module may have expired by then.
CALLERS: dict[str, Callable[[], str]] = {
    "nobody": lambda: "",
    "wrong key": lambda: "guess",
    "operator key": lambda: ADMIN_KEY,
    "admin token": lambda: MINE.token("op", roles=["admin"]),
    "another": lambda: MINE.token("bob"),
    "owner": lambda: MINE.token("ann"),
}
ANYONE = (200, 200, 200, 200, 200, 200)
BUYERS = (401, 401, 401, 202, 202, 202)
OWN_LIST = (401, 401, 401, 200, 200, 200)
OPERATORS = (401, 401, 200, 200, 403, 403)
MATRIX: dict[str, tuple[int, ...]] = {
    "GET /v1/products": ANYONE,
    "GET /v1/products/{product_id}": ANYONE,
    "GET /v1/sale/events": ANYONE,
    "POST /v1/purchases": BUYERS,
    "GET /v1/purchases": OWN_LIST,
    "GET /v1/purchases/{purchase_id}": (401, 401, 401, 404, 404, 200),
    "GET /v1/purchases/{purchase_id}/events": (401, 401, 401, 404, 404, 200),
    "POST /v1/purchases/{purchase_id}/cancel": (401, 401, 401, 404, 404, 202),
    "POST /v1/payments/webhook": (401, 401, 401, 401, 401, 401),  # its signature counts, not who sends it
    "GET /admin/v1/orders": OPERATORS,
    "POST /admin/v1/orders/{purchase_id}/cancel": OPERATORS,
    "POST /admin/v1/products": OPERATORS,
    "PATCH /admin/v1/products/{product_id}": OPERATORS,
    "POST /admin/v1/products/{product_id}/restock": OPERATORS,
    "POST /admin/v1/products/{product_id}/{action}": OPERATORS,
    "POST /admin/v1/products/{product_id}/cancel-orders": OPERATORS,
}


def described() -> list[str]:
    """Every route that the committed descriptions name."""
    documents = (json.loads(path.read_text()) for path in sorted((ROOT / "services/gateway").glob("openapi*.json")))
    paths = [(path, methods) for document in documents for path, methods in document["paths"].items()]
    return [f"{method.upper()} {path}" for path, methods in paths for method in methods if method in METHODS]


@pytest.fixture(scope="module")
def gateway(sale: Sale, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that believes this module's tokens."""
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "key").write_text(SECRET)
    one = GatewayProcess(
        sale.stack,
        folder,
        STAMPEDE_AUTH="jwt",
        STAMPEDE_JWT_ALGORITHM="HS256",
        STAMPEDE_JWT_ISSUER=ISSUER,
        STAMPEDE_JWT_AUDIENCE=AUDIENCE,
        STAMPEDE_JWT_KEY_FILE=str(folder / "key"),
    )
    try:
        one.await_ready()
        yield one
    finally:
        assert one.close() == 0, one.said()


def client(gateway: GatewayProcess, route: str, caller: str) -> httpx.Client:
    """Somebody, at the listener of this route."""
    url = gateway.admin_url if "/admin/" in route else gateway.url
    token = CALLERS[caller]()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, timeout=10)


def call(http: httpx.Client, route: str, product: str, purchase: str) -> int:
    """Do it, properly; the status."""
    method, _, path = route.partition(" ")
    path = path.replace("{product_id}", product).replace("{purchase_id}", purchase).replace("{action}", "open")
    bodies: dict[str, dict[str, object]] = {
        "POST /v1/purchases": order(product),
        "POST /v1/payments/webhook": {"purchase_id": purchase, "outcome": "approved"},
        "POST /admin/v1/products": listing(product),
        "PATCH /admin/v1/products/{product_id}": {"per_buyer_limit": 9},
        "POST /admin/v1/products/{product_id}/restock": {"quantity": 1},
    }
    headers = {"Idempotency-Key": uuid4().hex} if method == "POST" else {}
    with http.stream(method, path, json=bodies.get(route), headers=headers) as answer:
        return 200 if answer.status_code in {201, 202} and "/admin/" in route else answer.status_code


def test_every_route_is_in_the_matrix() -> None:
    """One that is described and not judged here fails."""
    assert set(described()) == set(MATRIX)


@pytest.mark.parametrize("route", MATRIX)
def test_who_may_do_what(sale: Sale, gateway: GatewayProcess, route: str) -> None:
    """The owner, another buyer, an operator by key and by token, a wrong key, nobody."""
    product = sale.product(10)
    with client(gateway, "/v1", "owner") as ann:
        purchase = buy(ann, product, wait=5).headers["location"].rpartition("/")[2]
    told = []
    for caller in CALLERS:
        with client(gateway, route, caller) as http:
            told.append(call(http, route, product, purchase))
    assert tuple(told) == MATRIX[route], dict(zip(CALLERS, told, strict=True))


def test_operators_routes_are_not_on_the_buyers_listener(gateway: GatewayProcess) -> None:
    """Nor the other way round, whoever asks."""
    for route, url in (("/admin/v1/orders", gateway.url), ("/v1/purchases", gateway.admin_url)):
        for token in (ADMIN_KEY, CALLERS["admin token"]):
            answer = httpx.get(f"{url}{route}", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 404
