"""Bad input at the edge of a real gateway, as raw bytes: no 500, no hang, nothing logged, always a problem."""

import json
import urllib.request
from collections.abc import Callable, Iterator

import psutil
import pytest

from stampede_schemas.topics import REQUESTS
from tests.support.faults.raw import Answer, ask, talk
from tests.support.processes.inventory import Log
from tests.support.processes.sale import Sale

GOOD = b'{"product_id":"%b","quantity":1}'
HEAD = {"Host": "x", "Content-Type": "application/json", "X-User-Id": "ann", "Idempotency-Key": "k"}


def post(sale: Sale, body: bytes, **headers: str | None) -> Answer:
    """A POST with these headers changed (`None`: left out; `_` stands for a dash)."""
    changed = HEAD | {name.replace("_", "-"): value for name, value in headers.items()}
    changed.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in changed.items() if value is not None)
    return ask(sale.gateway.http, f"POST /v1/purchases HTTP/1.1\r\n{lines}\r\n".encode() + body)


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
        answer = ask(sale.gateway.http, f"GET {prefix}{path} HTTP/1.1\r\nHost: x\r\nX-User-Id: a\r\n\r\n".encode())
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
    chunked = ask(sale.gateway.http, head + chunk * 200)
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
    answer = ask(sale.gateway.http, f"{method} /v1/purchases HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert (answer.status, answer.problem) == (405, "method-not-allowed")


SMUGGLED = (
    b"POST /v1/purchases HTTP/1.1\r\nHost: x\r\nX-User-Id: eve\r\nIdempotency-Key: smuggled\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
JSON = "POST /v1/purchases HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "status", "problem"),
    [
        (JSON + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed-request"),
        (JSON + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, "malformed-request"),
        (JSON + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400, "malformed-request"),
        (JSON + "Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n", 400, "malformed-request"),
        (JSON + "Transfer-Encoding: chunked\r\n\r\n5\r\nabc\r\n0\r\n\r\n", 400, "malformed-request"),
        (JSON + "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400, "malformed-request"),
        (JSON + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "malformed-request"),
        (JSON + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "malformed-request"),
        (JSON + "Content-Length: abc\r\n\r\n", 400, "malformed-request"),
        (JSON + "Content-Length: -1\r\n\r\n", 400, "malformed-request"),
        (JSON + "Content-Length: +5\r\n\r\nabcde", 400, "malformed-request"),
        (JSON + "A: b\nContent-Length: 0\r\n\r\n", 400, "malformed-request"),
        (JSON + "A: b\x00c\r\n\r\n", 400, "malformed-request"),
        (JSON + "A\x00: b\r\n\r\n", 400, "malformed-request"),
        (JSON + "A: b\r\n folded\r\n\r\n", 400, "malformed-request"),
        (JSON.replace(" /v1", " http://x/v1") + "Content-Length: 0\r\n\r\n", 400, "malformed-request"),
        ("FOO /v1/purchases HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-request"),
        ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-request"),
        ("GET /v1/products HTTP/9.9\r\n\r\n", 400, "malformed-request"),
        ("GET /v1/products%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-request"),
        ("GET /v1/products?a=%f HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-request"),
        ("\x00\x01\x02\r\n\r\n", 400, "malformed-request"),
        (JSON + "A: b\r\n" * 101 + "\r\n", 431, "headers-too-large"),
        (JSON + f"A: {'b' * 65_536}\r\n\r\n", 431, "headers-too-large"),
        (f"GET /v1/products/{'a' * 102_400} HTTP/1.1\r\nHost: x\r\n\r\n", 414, "url-too-long"),
    ],
    ids=lambda value: ascii(value[-40:]) if isinstance(value, str) else value,
)
def test_what_is_not_http_is_refused_and_closed(sale: Sale, tea: str, head: str, status: int, problem: str) -> None:
    """As a problem, then the end of the connection: nothing smuggled behind it is read."""
    good = GOOD % tea.encode()
    with talk(sale.gateway.http) as connection:
        connection.send(head.encode("latin-1") + SMUGGLED % (len(good), good))
        answer = connection.answer()
        assert answer is not None
        assert (answer.status, answer.problem, answer.last) == (status, problem, True)
        assert connection.ended()


def test_who_asks_is_not_said_behind_the_body(sale: Sale, tea: str) -> None:
    """Trailers are no headers: a proxy that checks the one has not seen the other."""
    good = GOOD % tea.encode()
    head = JSON + "Idempotency-Key: k\r\nTransfer-Encoding: chunked\r\nTrailer: X-User-Id\r\n\r\n"
    body = b"%x\r\n%b\r\n0\r\nX-User-Id: bob\r\n\r\n" % (len(good), good)
    answer = ask(sale.gateway.http, head.encode() + body)
    assert (answer.status, answer.problem) == (401, "unauthenticated")


def test_a_thousand_pipelined_requests_and_an_endless_body_leave_no_trace(sale: Sale) -> None:
    """Answered in order or closed, refused or closed; the gateway's memory stays flat."""
    process = psutil.Process(sale.gateway.process.pid)
    before = process.memory_info().rss
    for _ in range(5):
        with talk(sale.gateway.http) as connection:
            connection.send(b"".join(b"GET /v1/products/none-%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(1_000)))
            answers = connection.answers()
            assert {(answer.status, answer.problem) for answer in answers} == {(404, "unknown-product")}
        with talk(sale.gateway.http) as connection:
            lines = "".join(f"{name}: {value}\r\n" for name, value in HEAD.items())
            connection.send(f"POST /v1/purchases HTTP/1.1\r\n{lines}Transfer-Encoding: chunked\r\n\r\n".encode())
            piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                connection.socket.sendall(piece * 1_600)
    assert process.memory_info().rss - before < 20_000_000


def test_half_a_conversation_is_answered(sale: Sale, tea: str) -> None:
    """A client that has shut its side down gets its answer; one that stopped in the middle is told so."""
    good = GOOD % tea.encode()
    whole = ask(sale.gateway.http, b"GET /v1/purchases/x HTTP/1.1\r\nX-User-Id: ann\r\n\r\n", finish=True)
    assert (whole.status, whole.problem) == (404, "not-found")
    cut = ask(sale.gateway.http, (SMUGGLED % (len(good), good))[:-1], finish=True)
    assert (cut.status, cut.problem) == (400, "malformed-request")


@pytest.mark.parametrize(
    "header",
    [
        "traceparent: 00-zz-00-01",
        "traceparent: " + "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" * 100,
        "traceparent: 00-00000000000000000000000000000000-0000000000000000-ff",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
        "baggage: " + "a=b," * 2_000,
        "tracestate: " + "x=y," * 1_000,
    ],
    ids=lambda header: header[:40],
)
def test_trace_headers_of_others_do_not_matter(sale: Sale, header: str) -> None:
    """Served, with a trace of our own."""
    answer = post(sale, b'{"product_id":"no-such-product","quantity":1}', Accept="x\r\n" + header)
    assert (answer.status, answer.problem) == (404, "unknown-product")
    assert "0af7651916cd43dd8448eb211c80319c" not in json.loads(answer.body)["trace_id"]


def test_other_sites_get_no_permission(sale: Sale) -> None:
    """No preflight is granted, and no answer may be read by a page of somebody else."""
    head = (
        "OPTIONS /v1/purchases HTTP/1.1\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    )
    preflight = ask(sale.gateway.http, head.encode())
    assert (preflight.status, preflight.problem) == (405, "method-not-allowed")
    simple = ask(sale.gateway.http, b"GET /v1/products HTTP/1.1\r\nOrigin: https://evil.example\r\n\r\n")
    assert simple.status == 200
    assert "access-control" not in (preflight.head + simple.head).lower()


def test_methods_and_names_are_not_overridden(sale: Sale) -> None:
    """A GET stays a GET, and nobody becomes somebody else by a header or the query."""
    for override in ("X-HTTP-Method-Override: POST", "X-HTTP-Method: DELETE", "X-Forwarded-User: bob"):
        head = f"GET /v1/purchases/x?_method=POST&X-User-Id=bob&access_token=x HTTP/1.1\r\n{override}\r\n\r\n"
        assert ask(sale.gateway.http, head.encode()).problem == "unauthenticated"


def test_strange_text_makes_neither_log_lines_nor_labels(sale: Sale) -> None:
    """Every line of the log is one JSON object of ASCII; no metric has a label that a client chose."""
    forged = "%0A%7B%22level%22:%22forged%22%7D%1B%5B31m"
    for port in (sale.gateway.http, sale.gateway.admin):
        for prefix in ("/v1/products/", "/admin/v1/products/"):
            ask(port, f"POST {prefix}{forged}/open HTTP/1.1\r\nHost: \x1b[31m\r\nContent-Length: 0\r\n\r\n".encode())
            ask(port, f"GET {prefix}label-{forged} HTTP/1.1\r\nUser-Agent: label-x\r\n\r\n".encode())
    said = sale.gateway.said()
    assert said.isascii()
    assert "\x1b" not in said
    assert all(json.loads(line).get("level") != "forged" for line in said.splitlines())
    with urllib.request.urlopen(f"http://127.0.0.1:{sale.gateway.ops}/metrics", timeout=5) as metrics:
        text = metrics.read().decode()
    assert "stampede_purchases_total" in text
    assert not any(odd in text for odd in ("label-", "no-such-product", "forged", "ann"))


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
