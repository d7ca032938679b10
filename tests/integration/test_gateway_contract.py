"""What the description of the edge promises beside its routes, against a real gateway."""

import httpx
import pytest

from gateway.http.problems import KINDS
from tests.support.faults.raw import Answer, ask
from tests.support.processes.sale import Sale, buy

FORM = "application/x-www-form-urlencoded"  # what curl says of a POST without being asked


def cancel(sale: Sale, path: str, body: bytes = b"", *lines: str) -> Answer:
    """POST there as ann, with these header lines; an empty one as a client sends it that has nothing to say."""
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "X-User-Id: ann", *lines])
    return ask(sale.gateway.http, head.encode() + b"\r\n\r\n" + body)


@pytest.fixture(scope="module")
def path(sale: Sale) -> str:
    """Where a purchase of ann's is cancelled; without an order-writer it never ends."""
    with sale.buyer("ann") as ann:
        return buy(ann, sale.product(), wait=5).headers["location"] + "/cancel"


@pytest.mark.parametrize("media", ["", "application/octet-stream", FORM, "text/plain", "application/json"])
def test_an_empty_body_needs_no_type(sale: Sale, path: str, media: str) -> None:
    """However its emptiness is said; and none at all does."""
    said = [f"Content-Type: {media}"] if media else []
    assert cancel(sale, path, b"", *said, "Content-Length: 0").status == 202
    assert cancel(sale, path, b"", *said).status == 202
    assert cancel(sale, path, b"0\r\n\r\n", *said, "Transfer-Encoding: chunked").status == 202
    with sale.operator() as operator:
        product = f"/admin/v1/products/{sale.product()}"
        for action in ("open", "cancel-orders"):
            answer = operator.post(f"{product}/{action}", headers={"Content-Type": media} if media else {})
            assert answer.status_code in {200, 202}, answer.text


@pytest.mark.parametrize("media", ["application/octet-stream", FORM, ""])
def test_a_body_needs_one(sale: Sale, path: str, media: str) -> None:
    """Also where it comes in chunks, and is not known to be one before it is read."""
    said = [f"Content-Type: {media}"] if media else []
    refused = [
        cancel(sale, path, b"{}", *said, "Content-Length: 2"),
        cancel(sale, path, b"2\r\n{}\r\n0\r\n\r\n", *said, "Transfer-Encoding: chunked"),
        cancel(sale, path, b"", *said, "Content-Length: 0", "Content-Encoding: gzip"),
    ]
    assert [(one.status, one.problem) for one in refused] == [(415, "unsupported-media-type")] * 3


@pytest.mark.parametrize("body", ['{"userId":"bob"}', '{"reason":1}', "[]", "[1]", "0", "null", '"{}"', "{}{}", "{"])
def test_where_nothing_is_to_be_said_unknown_fields_are_refused_too(sale: Sale, path: str, body: str) -> None:
    """`{}` says nothing, and passes."""
    media = "Content-Type: application/json"
    answer = cancel(sale, path, body.encode(), media, f"Content-Length: {len(body)}")
    assert (answer.status, answer.problem) in {(422, "invalid-body"), (400, "malformed-request")}
    assert cancel(sale, path, b" { }\n", media, "Content-Length: 5").status == 202
    with sale.operator() as operator:
        product = f"/admin/v1/products/{sale.product()}"
        for action in ("pause", "cancel-orders"):
            headers = {"Content-Type": "application/json"}
            assert operator.post(f"{product}/{action}", content=body, headers=headers).status_code in {400, 422}
            assert operator.post(f"{product}/{action}", json={}).status_code in {200, 202}
        assert operator.post(f"/admin/v1/orders{path[len('/v1/purchases') :]}", json={"by": "me"}).status_code == 422


def test_the_type_of_a_problem_is_the_address_of_its_page(sale: Sale) -> None:
    """On the listener that said it: what it means, and what to do. Needs no credentials, for all kinds."""
    with httpx.Client(base_url=sale.gateway.url) as buyer, httpx.Client(base_url=sale.gateway.admin_url) as nobody:
        for client, asked in ((buyer, "/v1/purchases"), (nobody, "/admin/v1/orders")):
            problem = client.get(asked).json()
            page = client.get(problem["type"])
            assert (page.status_code, page.headers["content-type"]) == (200, "text/plain; charset=utf-8")
            assert page.text.startswith(f"# {problem['title']}\n")
            assert "**What to do.** " in page.text
            assert {client.get(f"/problems/{kind.slug}").status_code for kind in KINDS} == {200}
            unknown = client.get("/problems/no-such-problem")
            assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/not-found")


def test_a_limit_of_streams_is_told_like_any_other(sale: Sale, path: str) -> None:
    """429 with the policy, what is left of it, and when to come back."""
    with sale.buyer("ann") as ann:
        opened = [
            ann.send(ann.build_request("GET", path.replace("/cancel", "/events")), stream=True) for _ in range(11)
        ]
        try:
            refused = next(answer for answer in opened if answer.status_code == 429)
            assert refused.headers["ratelimit-policy"] == '"streams";q=10'
            assert refused.headers["ratelimit"] == f'"streams";r=0;t={refused.headers["retry-after"]}'
        finally:
            for answer in opened:
                answer.close()
