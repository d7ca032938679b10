"""A real gateway on real Kafka, Postgres and Redis, with a real inventory beside it, over HTTP."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from gateway.auth.ids import IdentityKey, Subject
from stampede_schemas.identifiers import ProductId
from stampede_schemas.topics import REQUESTS, partition_of
from tests.support.builders.gateway import IDENTITY_KEY, GatewayProcess
from tests.support.processes.inventory import Log
from tests.support.processes.sale import Sale, buy, listing, order
from tests.support.processes.stack import eventually


def test_a_purchase_is_accepted_decided_and_shown(sale: Sale) -> None:
    """202 with a Location; then reserved; a repeat gets the same bytes, marked as such."""
    tea = sale.product(2)
    with sale.buyer() as ann:
        accepted = buy(ann, tea, "one")
        assert accepted.status_code == 202
        purchase_id = accepted.json()["purchase_id"]
        assert accepted.headers["location"] == f"/v1/purchases/{purchase_id}"
        shown = ann.get(accepted.headers["location"], params={"wait": 5, "version": 0})
        assert shown.json()["status"] == "reserved"
        assert shown.json()["price"] == {"unit_minor": 500, "total_minor": 500, "currency": "EUR"}
        assert shown.headers["retry-after"] == "1"
        again = buy(ann, tea, '"one"')
        assert (again.status_code, again.content) == (202, accepted.content)
        assert again.headers["location"] == accepted.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in accepted.headers
        other = buy(ann, tea, "one", quantity=2)
        assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")


def test_a_purchase_is_its_buyers_alone(sale: Sale) -> None:
    """Others see a 404, and their equal key is their own."""
    tea = sale.product(5)
    with sale.buyer() as ann, sale.buyer() as bob:
        hers, his = buy(ann, tea, "same", wait=5), buy(bob, tea, "same", wait=5)
        assert (hers.status_code, his.status_code) == (201, 201)
        assert hers.json()["purchase_id"] != his.json()["purchase_id"]
        seen = bob.get(hers.headers["location"])
        assert (seen.status_code, seen.json()["type"]) == (404, "/problems/not-found")
        assert httpx.get(f"{sale.gateway.url}{hers.headers['location']}").status_code == 401


def test_waiting_ends_with_the_decision(sale: Sale) -> None:
    """201 when reserved, 409 with a Location when the log says no: that is final, also for a repeat."""
    tea = sale.product(2)
    with sale.buyer() as ann:
        won = buy(ann, tea, wait=5)
        assert (won.status_code, won.json()["status"]) == (201, "reserved")
        assert won.headers["preference-applied"] == "wait=5"
        lost = buy(ann, tea, "two-of-one", quantity=2, wait=5)
        assert (lost.status_code, lost.json()["reason"]) == (409, "not_enough_left")
        assert lost.json()["retryable"] is False
        assert ann.get(lost.headers["location"]).json()["status"] == "rejected"
        assert buy(ann, tea, "two-of-one", quantity=2, wait=5).json()["reason"] == "not_enough_left"


def test_the_gate_says_sold_out_and_logs_nothing(sale: Sale) -> None:
    """409 without a Location, retryable; after a restock the same key wins. A winner's retry is still answered."""
    tea = sale.product(1)
    log = Log(sale.stack.kafka)
    with sale.buyer() as ann, sale.buyer() as bob, sale.operator() as operator:
        won = buy(ann, tea, "hers", wait=5)
        end = log.ends(REQUESTS.name)[partition_of(tea)]
        refused = buy(bob, tea, "his", wait=5)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/sold-out")
        assert (refused.json()["retryable"], refused.json()["may_reopen"]) == (True, True)
        assert "location" not in refused.headers
        assert log.ends(REQUESTS.name)[partition_of(tea)] == end
        assert buy(ann, tea, "hers").headers["location"] == won.headers["location"]
        headers = {"Idempotency-Key": "more"}
        more = operator.post(f"/admin/v1/products/{tea}/restock", json={"quantity": 1}, headers=headers)
        assert (more.status_code, more.json()["available"]) == (200, 1)
        assert buy(bob, tea, "his", wait=5).status_code == 201


def test_twenty_twins_at_once_are_one_purchase(sale: Sale) -> None:
    """Same key, same moment: one record, one unit, and the same bytes for all; one of them is told first."""
    tea = sale.product(50)

    async def twins() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=sale.gateway.url, headers={"X-User-Id": "twin"}, timeout=10) as client:
            headers = {"Idempotency-Key": tea}
            return await asyncio.gather(
                *(client.post("/v1/purchases", json=order(tea), headers=headers) for _ in range(20))
            )

    answers = asyncio.run(twins())
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert ["idempotency-replayed" in answer.headers for answer in answers].count(False) == 1
    with sale.buyer() as later:  # what is decided for this one is decided after all of theirs
        assert buy(later, tea, wait=5).status_code == 201
        assert later.get(f"/v1/products/{tea}").json()["available"] == 48
    records = Log(sale.stack.kafka).records(REQUESTS.name, partition_of(tea))
    assert b"".join(record.value or b"" for record in records).count(answers[0].json()["purchase_id"].encode()) == 1


def test_products_are_shown_with_what_is_left(sale: Sale) -> None:
    """A strong tag for what is left; unchanged is 304; unknown is 404; upcoming is refused at the edge."""
    tea = sale.product(3)
    later = sale.product(3, opens_at="2100-01-01T00:00:00Z")
    with sale.buyer() as ann:
        shown = ann.get(f"/v1/products/{tea}")
        assert (shown.json()["status"], shown.json()["available"], shown.json()["may_reopen"]) == ("open", 3, False)
        assert shown.headers["cache-control"] == "public, max-age=1"
        assert ann.get(f"/v1/products/{tea}", headers={"If-None-Match": shown.headers["etag"]}).status_code == 304
        assert buy(ann, tea, wait=5).status_code == 201
        changed = ann.get(f"/v1/products/{tea}", headers={"If-None-Match": shown.headers["etag"]})
        assert (changed.status_code, changed.json()["available"]) == (200, 2)
        assert {tea, later} <= {product["product_id"] for product in ann.get("/v1/products").json()["products"]}
        assert ann.get("/v1/products/none").json()["type"] == "/problems/unknown-product"
        early = buy(ann, later)
        assert (early.status_code, early.json()["type"]) == (409, "/problems/not-open")
        assert early.json()["sale_status"] == "upcoming"
        assert buy(ann, "no-such-product").json()["type"] == "/problems/unknown-product"


def test_operators_act_once_per_key_and_are_told_the_decision(sale: Sale) -> None:
    """Same listing again: 200; other content: 409. Restock twice with one key: once. Below zero: refused."""
    tea = f"tea-{uuid4().hex[:8]}"
    with sale.operator() as operator:
        assert operator.post("/admin/v1/products", json=listing(tea, 5)).status_code == 201
        assert operator.post("/admin/v1/products", json=listing(tea, 5)).status_code == 200
        conflict = operator.post("/admin/v1/products", json=listing(tea, 6))
        assert (conflict.status_code, conflict.json()["reason"]) == (409, "conflict")
        restock = f"/admin/v1/products/{tea}/restock"
        for _ in range(2):
            answer = operator.post(restock, json={"quantity": 3}, headers={"Idempotency-Key": "a"})
            assert (answer.status_code, answer.json()["available"]) == (200, 8)
        reused = operator.post(restock, json={"quantity": 4}, headers={"Idempotency-Key": "a"})
        assert reused.status_code == 422
        below = operator.post(restock, json={"quantity": -9}, headers={"Idempotency-Key": "b"})
        assert (below.status_code, below.json()["reason"]) == (409, "below_zero")
        assert operator.post(restock, json={"quantity": 1}).status_code == 400
        assert operator.patch(f"/admin/v1/products/{tea}", json={"unit_price_minor": 9}).json()["unit_price_minor"] == 9
        assert operator.post(f"/admin/v1/products/{tea}/pause").json()["status"] == "paused"
        assert operator.post(f"/admin/v1/products/{tea}/open").json()["status"] == "open"
        assert operator.post("/admin/v1/products/none/open").status_code == 404
        wrong = operator.post("/admin/v1/products", headers={"Authorization": "Bearer guess"}, json={})
        assert (wrong.status_code, wrong.json()["type"]) == (401, "/problems/unauthenticated")
    lines = [json.loads(line) for line in sale.gateway.said().splitlines() if '"gateway.audit"' in line]
    assert [line["outcome"] for line in lines if line.get("product_id") == tea][:3] == [
        "ProductListed",
        "ProductListed",
        "Ignored",
    ]


def test_a_limit_is_told_in_headers(sale: Sale, tmp_path: Path) -> None:
    """429 with the policy and when to come back; the next gateway process counts on."""
    tea = sale.product(50)
    gateway = GatewayProcess(sale.stack, tmp_path, STAMPEDE_LIMITS="user:token_bucket:2/min")
    try:
        gateway.await_ready()
        with sale.buyer(gateway=gateway) as ann:
            answers = [buy(ann, tea) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert answers[2].headers["ratelimit-policy"] == '"user";q=2;w=60'
        assert int(answers[2].headers["retry-after"]) >= 1
        assert answers[2].json()["type"] == "/problems/rate-limited"
    finally:
        assert gateway.close() == 0, gateway.said()


def test_another_gateway_and_a_restarted_one_know_the_purchase(sale: Sale, tmp_path: Path) -> None:
    """A gateway that begins later folds the log: same id, same answer, no second unit."""
    tea = sale.product(5)
    with sale.buyer("moving") as ann:
        first = buy(ann, tea, "k", wait=5)
    gateway = GatewayProcess(sale.stack, tmp_path)
    try:
        gateway.await_ready()
        with sale.buyer("moving", gateway) as ann:
            assert ann.get(first.headers["location"]).json()["status"] == "reserved"
            again = buy(ann, tea, "k", wait=5)
            assert (again.status_code, again.json()["purchase_id"]) == (201, first.json()["purchase_id"])
            assert again.headers["idempotency-replayed"] == "true"
            assert ann.get(f"/v1/products/{tea}").json()["available"] == 4
    finally:
        assert gateway.close() == 0, gateway.said()


def test_a_row_that_only_postgres_knows_is_shown_and_never_refused_early(sale: Sale) -> None:
    """What this gateway has forgotten, its row tells; a retry after sold-out is not a new buyer."""
    tea = sale.product(1)
    with sale.buyer() as ann, sale.buyer("old") as old:
        assert buy(ann, tea, wait=5).status_code == 201
        # Find the id by asking for a product that is sold out under a key not used before: 409, nothing logged.
        refused = buy(old, tea, "old-key")
        assert refused.status_code == 409
        key = IdentityKey(IDENTITY_KEY)
        subject = Subject("header", "old")
        purchase_id = key.purchase_id(subject, "POST", "/v1/purchases", ProductId(tea), "old-key")
        sale.sql(
            "INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reason, payment_method, "
            "fingerprint, partition, source_offset, source_index, version) "
            "VALUES ($1, $2, $3, 1, 'rejected', 'sold_out', 'ok', 'other-body', $4, 0, 0, 1)",
            purchase_id,
            key.buyer_id(subject),
            tea,
            partition_of(tea),
        )
        shown = old.get(f"/v1/purchases/{purchase_id}")
        assert (shown.status_code, shown.json()["status"], shown.json()["reason"]) == (200, "rejected", "sold_out")
        # Now the gateway knows the row; the same key with this body is another body than the row's.
        assert buy(old, tea, "old-key").status_code == 422


def test_another_identity_key_is_refused_at_the_start(sale: Sale, tmp_path: Path) -> None:
    """Two keys would give one request two ids."""
    gateway = GatewayProcess(sale.stack, tmp_path, STAMPEDE_IDENTITY_KEY="quite another key, but long enough to be one")
    assert gateway.process.wait(30) == 1
    assert "identity key" in gateway.said()


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"STAMPEDE_AUTH": "jwt"}, "it needs STAMPEDE_JWT_ALGORITHM"),
        ({"STAMPEDE_ENV": "prod"}, "refused with STAMPEDE_ENV=prod"),
        ({"STAMPEDE_HTTP_HOST": "0.0.0.0"}, "off loopback"),  # noqa: S104 - refused is the point
        ({"STAMPEDE_ADMIN_KEY_SHA256": "x"}, "STAMPEDE_ADMIN_KEY_SHA256"),
        ({"STAMPEDE_KAFKA": "127.0.0.1:1"}, "Kafka at 127.0.0.1:1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_ends_the_start_with_a_sentence(
    sale: Sale, tmp_path: Path, env: dict[str, str], sentence: str
) -> None:
    """On stderr, without a traceback, with an exit code."""
    gateway = GatewayProcess(sale.stack, tmp_path, **env)
    assert gateway.process.wait(30) != 0
    said = gateway.said()
    print(said)
    assert sentence in said
    assert "Traceback" not in said


def test_a_taken_port_is_named(sale: Sale, tmp_path: Path) -> None:
    """With the setting to change."""
    gateway = GatewayProcess(sale.stack, tmp_path, STAMPEDE_HTTP_PORT=str(sale.gateway.http))
    assert gateway.process.wait(30) == 1
    assert "STAMPEDE_HTTP_PORT" in gateway.said()
    assert "Traceback" not in gateway.said()


def test_a_purchase_leaves_a_trace_and_no_name(sale: Sale) -> None:
    """One server span and one producer span below it; the buyer's name is nowhere: log, spans, metrics."""
    tea = sale.product(3)
    canary = f"canary-{uuid4().hex}"
    with sale.buyer(canary) as ann:
        shown = buy(ann, tea, canary, wait=5)
    trace_id = shown.json()["trace_id"]
    spans = sale.folder / "spans.jsonl"

    def of_trace() -> dict[str, dict[str, Any]]:
        lines = [json.loads(line) for line in spans.read_text().splitlines()]
        return {span["name"]: span for span in lines if span["trace_id"] == trace_id}

    eventually(lambda: len(of_trace()) == 2, what="both spans")
    found = of_trace()
    assert found["send requests"]["parent_id"] == found["POST /v1/purchases"]["span_id"]
    assert found["send requests"]["attributes"]["purchase_id"] == shown.json()["purchase_id"]
    metrics = httpx.get(f"http://127.0.0.1:{sale.gateway.ops}/metrics").text
    assert 'stampede_purchases_total{outcome="reserved"}' in metrics
    records = Log(sale.stack.kafka).records(REQUESTS.name, partition_of(tea))
    topics = b"".join(record.value or b"" for record in records)
    assert shown.json()["purchase_id"].encode() in topics
    for text in (spans.read_text(), metrics, sale.gateway.said(), topics.decode()):
        assert canary not in text
