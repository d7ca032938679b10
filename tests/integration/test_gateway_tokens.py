"""Tokens at the edge of a real gateway: who gets in, as whom, and what no token can do."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.auth import jwks
from tests.support.builders.gateway import GatewayProcess
from tests.support.builders.tokens import AUDIENCE, ISSUER, Issuer, JwksServer, forged, jwks_server
from tests.support.faults.raw import ask
from tests.support.processes.sale import Sale, buy

KNOWN, ROTATED = Issuer("ES256", "known"), Issuer("ES256", "rotated")


@pytest.fixture(scope="module")
def keys() -> Iterator[JwksServer]:
    """The issuer's keys on loopback."""
    with jwks_server(KNOWN) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(sale: Sale, keys: JwksServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A second gateway on the same sale, which believes tokens."""
    one = GatewayProcess(
        sale.stack,
        tmp_path_factory.mktemp("tokens"),
        STAMPEDE_AUTH="jwt",
        STAMPEDE_JWT_ALGORITHM="ES256",
        STAMPEDE_JWT_ISSUER=ISSUER,
        STAMPEDE_JWT_AUDIENCE=AUDIENCE,
        STAMPEDE_JWT_JWKS_URL=keys.url,
    )
    try:
        one.await_ready()
        yield one
    finally:
        assert one.close() == 0, one.said()


def bearer(
    gateway: GatewayProcess, token: str, *, admin: bool = False, more: dict[str, str] | None = None
) -> httpx.Client:
    """A client with this token, and more headers."""
    url = gateway.admin_url if admin else gateway.url
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"} | (more or {}), timeout=10)


def test_a_purchase_belongs_to_the_tokens_subject(sale: Sale, gateway: GatewayProcess) -> None:
    """Whatever other headers, the query or another of his tokens say."""
    product = sale.product(10)
    spoofed = {"X-User-Id": "bob", "X-Forwarded-User": "bob", "X-Forwarded-For": "1.2.3.4"}
    with bearer(gateway, KNOWN.token("ann"), more=spoofed) as ann, bearer(gateway, KNOWN.token("bob")) as bob:
        bought = buy(ann, product, key="k", wait=5)
        assert bought.status_code == 201, bought.text
        location = bought.headers["location"]
        assert ann.get(location).status_code == 200
        assert bob.get(location).status_code == 404
        with bearer(gateway, KNOWN.token("ann", jti="another")) as again:
            assert again.get(location).status_code == 200
            assert buy(again, product, key="k").headers["location"] == location
        assert buy(bob, product, key="k", wait=5).headers["location"] != location


def test_what_is_no_token_of_ours_is_nobody(sale: Sale, gateway: GatewayProcess, keys: JwksServer) -> None:
    """401 as a problem that says how to ask; the issuer is not bothered."""
    asked = len(keys.asked)
    good = KNOWN.token("ann")
    refused = [
        forged({"alg": "none"}),
        forged({"alg": "HS256", "kid": "known"}, signature=b"x" * 32),
        Issuer("ES256", "known").token(),
        Issuer("RS256", "known").token(),
        KNOWN.token(iss="https://other.example"),
        KNOWN.token(aud="other"),
        KNOWN.token("\ud800"),
        KNOWN.token(exp=time.time() - 100),
        KNOWN.token(nbf=time.time() + 100),
        KNOWN.token(headers={"kid": "../../../etc/passwd"}),
        KNOWN.token(headers={"kid": "http://127.0.0.1:1/"}),
        "",
        "x" * 9_000,
        good + "x",
        good + " " + good,
    ]
    heads = [f"Authorization: Bearer {token}\r\n" for token in refused]
    heads += ["", f"Authorization: Bearer {good}\r\n" * 2, f"Authorization: Basic {good}\r\n", "X-User-Id: ann\r\n"]
    for head in heads:
        for path in ("/v1/purchases/x", f"/v1/purchases/x?access_token={good}"):
            answer = ask(gateway.http, f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
            assert (answer.status, answer.problem) == (401, "unauthenticated"), head[:60]
            assert "www-authenticate: bearer" in answer.head.lower()
    huge = ask(gateway.http, f"GET / HTTP/1.1\r\nAuthorization: Bearer {'x' * 65_536}\r\n\r\n".encode())
    assert (huge.status, huge.problem) == (431, "headers-too-large"), "no header may be so long, whatever it holds"
    assert len(keys.asked) == asked
    assert good not in gateway.said()


def test_operators_need_the_role(gateway: GatewayProcess) -> None:
    """A token with the role admin opens the operators' port; any other is 403, none at all 401."""
    path = "/admin/v1/orders"
    with bearer(gateway, KNOWN.token("op", roles=["admin"]), admin=True) as operator:
        assert operator.get(path).status_code == 200
    with bearer(gateway, KNOWN.token("ann", roles=["administrator"]), admin=True) as ann:
        assert ann.get(path).status_code == 403
    with bearer(gateway, forged({"alg": "none"}), admin=True) as nobody:
        assert nobody.get(path).status_code == 401


def test_an_issuer_that_is_away_does_no_harm(gateway: GatewayProcess, keys: JwksServer) -> None:
    """Known keys are used on; and however many unknown ones are named, it was asked once this minute."""
    keys.status = 500
    try:
        for _ in range(20):
            with bearer(gateway, ROTATED.token("ann")) as stranger:
                assert stranger.get("/v1/purchases/x").status_code == 401
        with bearer(gateway, KNOWN.token("carl")) as carl:
            assert carl.get("/v1/purchases/x").status_code == 404
    finally:
        keys.status = 200
    assert len(keys.asked) == 1


def test_settings_that_are_missing_stop_the_start(sale: Sale, tmp_path: Path) -> None:
    """With a sentence that names them."""
    wrong = GatewayProcess(sale.stack, tmp_path, STAMPEDE_AUTH="jwt", STAMPEDE_JWT_ALGORITHM="HS256")
    assert wrong.process.wait(20) == 1
    assert "STAMPEDE_JWT_ISSUER" in wrong.said()


def test_a_document_is_fetched_within_bounds() -> None:
    """One that is too large, an error, or a redirect to anything but https is no document."""
    with jwks_server(Issuer()) as server:
        assert jwks.fetch(server.url) == server.body
        server.body = b" " * (jwks.JWKS_BYTES_MAX + 1)
        with pytest.raises(ValueError, match="bytes"):
            jwks.fetch(server.url)
        server.status = 302
        for server.location in ("http://127.0.0.1:1/keys", "/keys", "ftp://127.0.0.1/keys"):
            with pytest.raises(ValueError, match="no https URL"):
                jwks.fetch(server.url)
        server.location = "https://127.0.0.1:1/keys"
        with pytest.raises(OSError, match="refused"):  # it is followed: nothing listens there
            jwks.fetch(server.url)
        server.status, server.location = 500, ""
        with pytest.raises(OSError, match="500"):
            jwks.fetch(server.url)
