"""Bad input at the door of a real gateway, as raw bytes: no 500, no hang, nothing logged, always a problem."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from stampede_schemas.topics import REQUESTS
from tests.support.inventory import Log
from tests.support.sale import Sale

HANG_S_MAX = 5.0
GOOD = b'{"product_id":"%b","quantity":1}'
HEAD = {"Host": "x", "Content-Type": "application/json", "X-User-Id": "ann", "Idempotency-Key": "k"}


@dataclass(frozen=True)
class Answer:
    """A response, as it came."""

    status: int
    head: str
    body: bytes

    @property
    def problem(self) -> str:
        """The type of the problem document."""
        assert "content-type: application/problem+json" in self.head.lower(), (self.head, self.body)
        document = json.loads(self.body)
        assert {"type", "title", "status", "detail", "retryable", "trace_id"} <= document.keys()
        assert document["status"] == self.status
        assert b"Traceback" not in self.body
        return str(document["type"]).removeprefix("/problems/")


def raw(port: int, data: bytes, *, finish: bool = False) -> Answer:
    """Send bytes, read one response. The connection must not stay silent for five seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_S_MAX) as connection:
        try:
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered and closed before it had read everything: that is what the limit is for
        received = b""
        while b"\r\n\r\n" not in received:
            part = connection.recv(65536)
            if not part:
                break
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        while length and len(body) < int(length[1]) and (part := connection.recv(65536)):
            body += part
    assert time.monotonic() - began < HANG_S_MAX
    assert head, "the connection was closed without an answer"
    return Answer(int(head.split()[1]), head.decode("latin-1"), body)


def post(sale: Sale, body: bytes, **headers: str | None) -> Answer:
    """A POST with these headers changed (`None`: left out; `_` stands for a dash)."""
    changed = HEAD | {name.replace("_", "-"): value for name, value in headers.items()}
    changed.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in changed.items() if value is not None)
    return raw(sale.gateway.http, f"POST /v1/purchases HTTP/1.1\r\n{lines}\r\n".encode() + body)


@pytest.fixture(autouse=True)
def nothing_is_logged(sale: Sale) -> Iterator[None]:
    """Not one record more in `requests` after each of these tests, and the gateway still works."""
    log = Log(sale.stack.kafka)
    before = log.ends(REQUESTS.name)
    yield
    assert log.ends(REQUESTS.name) == before
    with sale.buyer() as ann:
        assert ann.get("/livez").status_code == 200
    assert "Traceback" not in sale.gateway.said()


@pytest.fixture(scope="module")
def tea(sale: Sale) -> str:
    """A product that could be bought."""
    return sale.product(1_000)


@pytest.mark.parametrize(
    "quantity",
    ["0", "-1", "1.5", '"1"', "true", "null", "[]", "NaN", "1e999", str(2**31), str(2**63), "9" * 3_000],
    ids=lambda text: text[:10],
)
def test_a_quantity_is_a_whole_number_from_1_to_1000(sale: Sale, tea: str, quantity: str) -> None:
    """422 for anything else."""
    answer = post(sale, f'{{"product_id":"{tea}","quantity":{quantity}}}'.encode())
    assert (answer.status, answer.problem) == (422, "invalid-body")


def test_ten_thousand_digits_are_too_large(sale: Sale, tea: str) -> None:
    """Refused by size, without a stall."""
    answer = post(sale, f'{{"product_id":"{tea}","quantity":{"9" * 10_000}}}'.encode())
    assert (answer.status, answer.problem) == (413, "too-large")


@pytest.mark.parametrize(
    "product_id",
    ["", "no-such-product", "../", "%00", "a" * 300, "🪔", "t\u0435a", "tea\u202e", "tea\\u0000", "TEA"],
    ids=ascii,
)
def test_a_product_that_is_none(sale: Sale, product_id: str) -> None:
    """404 or 422, and no new label in the metrics."""
    answer = post(sale, f'{{"product_id":"{product_id}","quantity":1}}'.encode())
    assert answer.problem in {"unknown-product", "invalid-body"}
    assert answer.status in {404, 422}


@pytest.mark.parametrize("path", ["..%2f", "%00", "%ff%fe", "a" * 300, "%F0%9F%AA%94", "a%0d%0aX:%20y", "%E2%80%AEtea"])
def test_a_product_in_the_path_that_is_none(sale: Sale, path: str) -> None:
    """404, whatever it is spelled like."""
    for prefix in ("/v1/products/", "/v1/purchases/"):
        answer = raw(sale.gateway.http, f"GET {prefix}{path} HTTP/1.1\r\nHost: x\r\nX-User-Id: a\r\n\r\n".encode())
        assert answer.status == 404
        assert answer.problem in {"unknown-product", "not-found"}


@pytest.mark.parametrize(
    "make",
    [
        lambda good: b"",
        lambda good: b"[]",
        lambda good: b'"text"',
        lambda good: good + b"x",
        lambda good: good + good,
        lambda good: good[:-1] + b',"quantity":2}',
        lambda good: b"\xef\xbb\xbf" + good,
        lambda good: good.decode().encode("utf-16"),
        lambda good: good.replace(b"tea", b"\\ud800"),
        lambda good: b"[" * 4_000,
        lambda good: good[:-1] + b',"price":1}',
        lambda good: good[:-1] + b',"userId":"bob"}',
        lambda good: good[:-1] + b',"status":"confirmed"}',
        lambda good: good[:-1],
    ],
)
def test_a_body_that_is_no_purchase(sale: Sale, tea: str, make: Callable[[bytes], bytes]) -> None:
    """400 or 422."""
    answer = post(sale, make(GOOD % tea.encode()))
    assert (answer.status, answer.problem) in {(400, "malformed-request"), (422, "invalid-body")}


def test_bodies_are_refused_before_they_are_read(sale: Sale, tea: str) -> None:
    """413 on the announced length alone; a chunked one ends at the limit; the connection is closed."""
    good = GOOD % tea.encode()
    announced = post(sale, b"", Content_Length=str(5 * 2**20))
    assert (announced.status, announced.problem) == (413, "too-large")
    assert "connection: close" in announced.head
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEAD.items())
    head = f"POST /v1/purchases HTTP/1.1\r\n{lines}Transfer-Encoding: chunked\r\n\r\n".encode()
    chunked = raw(sale.gateway.http, head + chunk * 200)
    assert (chunked.status, chunked.problem) == (413, "too-large")
    short = post(sale, good, Content_Length=str(len(good) - 1))
    assert short.status == 400


@pytest.mark.parametrize(
    ("headers", "status", "problem"),
    [
        ({"Content_Type": None}, 415, "unsupported-media-type"),
        ({"Content_Type": "text/plain"}, 415, "unsupported-media-type"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415, "unsupported-media-type"),
        ({"Content_Encoding": "gzip"}, 415, "unsupported-media-type"),
        ({"Content_Encoding": "br"}, 415, "unsupported-media-type"),
        ({"Idempotency_Key": None}, 400, "idempotency-key-invalid"),
        ({"Idempotency_Key": ""}, 400, "idempotency-key-invalid"),
        ({"Idempotency_Key": "x" * 256}, 400, "idempotency-key-invalid"),
        ({"Idempotency_Key": "é"}, 400, "idempotency-key-invalid"),
        ({"Idempotency_Key": "k\r\nIdempotency-Key: k"}, 400, "idempotency-key-invalid"),
        ({"X_User_Id": None}, 401, "unauthenticated"),
        ({"X_User_Id": "ann\r\nX-User-Id: bob"}, 401, "unauthenticated"),
        ({"X_User_Id": "é"}, 401, "unauthenticated"),
    ],
    ids=str,
)
def test_headers_that_are_missing_or_wrong(
    sale: Sale, tea: str, headers: dict[str, str | None], status: int, problem: str
) -> None:
    """Each with its own problem."""
    answer = post(sale, GOOD % tea.encode(), **headers)
    assert (answer.status, answer.problem) == (status, problem)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_method_that_is_not_there(sale: Sale, method: str) -> None:
    """405 with the methods there are, or a plain refusal of the server."""
    answer = raw(sale.gateway.http, f"{method} /v1/purchases HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert (answer.status, answer.problem) == (405, "method-not-allowed")


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/purchases HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/purchases HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "POST /v1/purchases HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
        "POST /v1/purchases HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        "FOO /v1/purchases HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/products HTTP/9.9\r\n\r\n",
        "\x00\x01\x02\r\n\r\n",
    ],
    ids=ascii,
)
def test_what_is_not_http_is_refused_and_closed(sale: Sale, head: str) -> None:
    """400 or 415, then the end of the connection: nothing smuggled behind it is read."""
    answer = raw(sale.gateway.http, head.encode("latin-1"))
    assert answer.status in {400, 415}
    assert "connection: close" in answer.head.lower()


def test_waits_and_versions_in_the_query_are_checked(sale: Sale) -> None:
    """422 naming the parameter; unknown parameters have no effect."""
    with sale.buyer() as ann:
        for query in ("wait=-1", "wait=6", "wait=x", "version=-1", f"version={'9' * 400}"):
            answer = ann.get(f"/v1/purchases/none?{query}")
            assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body"), query
        assert ann.get("/v1/purchases/none?userId=bob").status_code == 404


def test_operators_bodies_are_checked_too(sale: Sale) -> None:
    """Strictly: no coercion, no unknown fields, nothing oversized, and nobody without the key."""
    with sale.operator() as operator:
        path = "/admin/v1/products"
        good = {"product_id": "x", "name": "X", "unit_price_minor": 1, "currency": "EUR", "stock": 1}
        for wrong in (
            {"stock": "1"},
            {"stock": -1},
            {"stock": 1.5},
            {"currency": "eur"},
            {"product_id": "X"},
            {"name": ""},
            {"surprise": 1},
            {"opens_at": "2026-01-01T00:00:00"},
            {"opens_at": "2026-01-02T00:00:00Z", "closes_at": "2026-01-01T00:00:00Z"},
            {"opens_at": "1900-01-01T00:00:00Z"},
        ):
            answer = operator.post(path, json=good | wrong)
            assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body"), wrong
        assert (
            operator.post(path, content=b"{" * 5_000, headers={"Content-Type": "application/json"}).status_code == 413
        )
        assert operator.post(path, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
        assert operator.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        headers = {"Idempotency-Key": "k"}
        assert operator.post(f"{path}/x/restock", json={"quantity": 0}, headers=headers).status_code == 422
        assert operator.post(f"{path}/x/explode").status_code == 422
        for token in ("", "Bearer", "Bearer guess", "Basic x"):
            answer = operator.post(path, json=good, headers={"Authorization": token})
            assert answer.status_code == 401, token
