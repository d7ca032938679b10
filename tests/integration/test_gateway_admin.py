"""The operators' listener: who may, what each action does once, and the line it leaves; and `/docs` of both."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.builders.gateway import ADMIN_KEY
from tests.support.processes.jwt_sale import with_tokens
from tests.support.processes.sale import Sale, buy, listing


def test_an_operator_has_the_key_or_the_role(sale: Sale, tmp_path: Path) -> None:
    """A token with the role acts under a pseudonym; one without is refused by 403, nobody by 401."""
    tea = f"tea-{uuid4().hex[:8]}"
    with with_tokens(sale, tmp_path) as (gateway, issuer):
        desk = f"{gateway.admin_url}/admin/v1/products"

        def asked(token: str) -> httpx.Response:
            return httpx.post(desk, json=listing(tea, 5), headers={"Authorization": f"Bearer {token}"})

        assert asked(issuer.token("canary-operator", roles=["admin"])).status_code == 201
        assert asked(ADMIN_KEY).status_code == 200
        plain = asked(issuer.token("canary-buyer"))
        assert (plain.status_code, plain.json()["type"]) == (403, "/problems/forbidden")
        for nobody in ("x", issuer.token("ann", exp=1)):
            assert asked(nobody).status_code == 401
        orders = httpx.get(f"{gateway.admin_url}/admin/v1/orders", headers={"X-User-Id": "ann"})
        assert orders.status_code == 401
        assert httpx.get(f"{gateway.url}/admin/v1/orders").status_code == 404
        lines = [json.loads(line) for line in gateway.said().splitlines() if '"gateway.audit"' in line]
        told = [(line["outcome"], line["actor"]) for line in lines]
        assert [outcome for outcome, _ in told[:2]] in (["ProductListed"] * 2, ["ProductListed", "Ignored"])
        assert [outcome for outcome, _ in told[2:]] == ["refused"] * 4
        assert re.fullmatch(r"b[0-9a-f]{32}", told[0][1])
        assert {actor for _, actor in told[1:]} == {"key", "nobody"}
        assert "canary" not in gateway.said()


def test_a_key_is_good_for_one_action(sale: Sale) -> None:
    """The same again is the same outcome; something else with it is refused, and nothing is changed by it."""
    tea = f"tea-{uuid4().hex[:8]}"
    keyed = {"Idempotency-Key": uuid4().hex}
    with sale.operator() as desk:
        base, path = "/admin/v1/products", f"/admin/v1/products/{tea}"
        assert desk.post(base, json=listing(tea, 5), headers=keyed).status_code == 201
        assert desk.post(base, json=listing(tea, 5), headers=keyed).status_code == 200
        assert desk.post(base, json=listing(tea, 6), headers=keyed).json()["type"] == "/problems/idempotency-key-reused"
        assert desk.patch(path, json={"unit_price_minor": 7}, headers=keyed).json()["unit_price_minor"] == 7
        assert desk.patch(path, json={"unit_price_minor": 9}).json()["unit_price_minor"] == 9
        again = desk.patch(path, json={"unit_price_minor": 7}, headers=keyed)
        assert (again.status_code, again.json()["unit_price_minor"]) == (200, 9)
        other = desk.patch(path, json={"unit_price_minor": 8}, headers=keyed)
        assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
        for wrong in ({}, {"unit_price_minor": None}, {"opens_at": None}, {"stock": 3}):
            assert desk.patch(path, json=wrong).status_code == 422, wrong
        assert desk.post(f"{path}/restock", json={"quantity": 1}, headers={"Idempotency-Key": ""}).status_code == 400
        without = desk.post(f"{path}/restock", json={"quantity": 1})
        assert (without.status_code, without.json()["type"]) == (400, "/problems/idempotency-key-invalid")
        assert without.json()["detail"].startswith("Send one Idempotency-Key header: ")
        assert desk.post(f"{path}/restock", content=b'{"quantity":1,"quantity":2}', headers=keyed).status_code == 415
        twice = {**keyed, "Content-Type": "application/json"}
        answer = desk.post(f"{path}/restock", content=b'{"quantity":1,"quantity":2}', headers=twice)
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request")


def test_a_window_opens_is_moved_and_a_product_leaves_for_good(sale: Sale) -> None:
    """Upcoming until its window begins; retired: not in the list, and never on sale again."""
    tea = sale.product(5, opens_at="2100-01-01T00:00:00Z", per_buyer_limit=2)
    with sale.operator() as desk, sale.buyer() as ann:
        path = f"/admin/v1/products/{tea}"
        assert ann.get(f"/v1/products/{tea}").json()["status"] == "upcoming"
        moved = desk.patch(path, json={"opens_at": "2020-01-01T00:00:00Z", "per_buyer_limit": 1})
        assert (moved.json()["status"], moved.json()["opens_at"]) == ("open", "2020-01-01T00:00:00.000Z")
        assert buy(ann, tea, wait=5).status_code == 201
        assert buy(ann, tea, wait=5).json()["reason"] == "buyer_limit"
        assert desk.post(f"{path}/retire").json()["status"] == "closed"
        assert tea not in {product["product_id"] for product in ann.get("/v1/products").json()["products"]}
        assert desk.post(f"{path}/open").json()["reason"] == "retired"
        assert desk.post("/admin/v1/products", json=listing(tea, 5)).status_code == 409


def test_allow_names_all_that_can_be_done(sale: Sale) -> None:
    """On a path with two routes too."""
    with sale.buyer() as ann:
        assert ann.put("/v1/purchases").headers["allow"] == "GET, POST"
        assert ann.delete("/v1/products").headers["allow"] == "GET"


def test_a_tag_is_of_these_very_bytes(sale: Sale) -> None:
    """Another moment is another tag, and the old one is still good: 304 with the tag that was held."""
    tea = sale.product(3)
    with sale.buyer() as ann:
        first = ann.get(f"/v1/products/{tea}")
        second = first
        while second.content == first.content:
            second = ann.get(f"/v1/products/{tea}")
        assert second.headers["etag"] != first.headers["etag"]
        assert not first.headers["etag"].startswith("W/")
        for held in (first.headers["etag"], f'"x", {first.headers["etag"]}', f"W/{first.headers['etag']}"):
            unchanged = ann.get(f"/v1/products/{tea}", headers={"If-None-Match": held})
            assert (unchanged.status_code, unchanged.headers["etag"]) == (304, first.headers["etag"])
        assert ann.get(f"/v1/products/{tea}", headers={"If-None-Match": '"x"'}).status_code == 200
        assert ann.get("/v1/products", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_preferences_are_applied_and_said_so(sale: Sale) -> None:
    """respond-async: at once; with wait beside it, not longer than that."""
    tea = sale.product(5)
    with sale.buyer() as ann:

        def bought(prefer: str) -> httpx.Response:
            headers = {"Idempotency-Key": uuid4().hex, "Prefer": prefer}
            return ann.post("/v1/purchases", json={"product_id": tea, "quantity": 1}, headers=headers)

        at_once = bought("respond-async")
        assert (at_once.status_code, at_once.headers["preference-applied"]) == (202, "respond-async")
        waited = bought("respond-async, wait=5")
        assert (waited.status_code, waited.headers["preference-applied"]) == (201, "wait=5")
        assert "preference-applied" not in bought("handling=strict").headers


@pytest.mark.parametrize("face", ["buyers", "operators"])
def test_the_documentation_comes_from_here_alone(sale: Sale, face: str) -> None:
    """The page, its parts and the description, without a key; no byte is fetched from elsewhere."""
    url = sale.gateway.url if face == "buyers" else sale.gateway.admin_url
    page = httpx.get(f"{url}/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype html>", "")
    for part in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        found = httpx.get(f"{url}/{part}")
        assert (found.status_code, found.headers["x-content-type-options"]) == (200, "nosniff"), part
        assert found.content
    told = httpx.get(f"{url}/openapi.json").json()
    file = {"buyers": "openapi.json", "operators": "openapi-admin.json"}[face]
    committed = Path(__file__).parents[2] / "services/gateway" / file
    assert told == json.loads(committed.read_text())
    assert httpx.get(f"{url}/docs/../settings.py").status_code in {401, 404}


def test_the_process_says_when_it_has_begun(sale: Sale) -> None:
    """/startupz beside /livez and /readyz."""
    for path in ("/startupz", "/livez", "/readyz"):
        assert httpx.get(sale.gateway.url + path).json() == {"status": "ok"}
    assert httpx.get(f"{sale.gateway.url}/startupz?verbose").json()["checks"] == {"projection": True}


ROLES = ("nobody", "buyer", "stranger", "operator", "admin")
SEEN = {  # by whom a route is for, in the order of ROLES; 0: whatever comes of it, they are let in
    "everybody": (0, 0, 0, 0, 0),
    "buyers": (401, 0, 0, 401, 0),
    "owners": (401, 0, 404, 401, 404),
    "providers": (401, 401, 401, 401, 401),
    "operators": (401, 403, 403, 0, 0),
}


def meant_for(where: str, operation: dict[str, Any]) -> str:
    """Whom a route is for, by its description."""
    if "/admin/" in where:
        return "operators"
    if {"signature": []} in operation["security"]:
        return "providers"
    if not operation["security"]:
        return "everybody"
    return "owners" if "{purchase_id}" in where else "buyers"


def test_every_route_lets_in_whom_it_is_for(sale: Sale, tmp_path: Path) -> None:
    """Every route of both listeners for every role: the purchase of one buyer does not exist for all others."""
    tea = sale.product(20)
    with with_tokens(sale, tmp_path) as (gateway, issuer), httpx.Client(timeout=10) as client:
        tokens = {
            "nobody": None,
            "buyer": issuer.token("ann"),
            "stranger": issuer.token("eve"),
            "operator": ADMIN_KEY,
            "admin": issuer.token("root", roles=["admin"]),
        }

        def ask(role: str, where: str) -> int:
            method, _, path = where.partition(" ")
            base = gateway.admin_url if "/admin/" in path else gateway.url
            path = path.format(product_id=tea, purchase_id=bought, action="open")
            headers = {"Idempotency-Key": uuid4().hex}
            if tokens[role]:
                headers["Authorization"] = f"Bearer {tokens[role]}"
            body: dict[str, Any] = {"json": {"product_id": tea, "quantity": 1}} if method != "GET" else {}
            with client.stream(method, base + path, headers=headers, **body) as answer:
                return answer.status_code

        bought = "none"
        with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {tokens['buyer']}"}) as ann:
            bought = buy(ann, tea, wait=5).json()["purchase_id"]
        for file in ("openapi.json", "openapi-admin.json"):
            told = json.loads((Path(__file__).parents[2] / "services/gateway" / file).read_text())
            for path, methods in told["paths"].items():
                for method, operation in methods.items():
                    where = f"{method.upper()} {path}"
                    wanted = SEEN[meant_for(where, operation)]
                    got = tuple(ask(role, where) for role in ROLES)
                    shown = tuple(
                        0 if want == 0 and status not in {401, 403, 404} else status
                        for want, status in zip(wanted, got, strict=True)
                    )
                    assert shown == wanted, (where, got)
