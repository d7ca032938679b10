"""The Python client on a whole stack: buyers see the truth about every way in which a purchase can go."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from gateway.api.webhook_signature import SIGNATURE_HEADER
from stampede_client import Client, Purchase, Refused, Retries, Unreachable
from tests.support.builders.webhook import signature
from tests.support.faults.fuzz import WEBHOOK_SECRET
from tests.support.processes.sale import listing
from tests.support.processes.stack import ROOT, LocalStack, eventually


def operator(whole: LocalStack) -> httpx.Client:
    """A client with the operators' key."""
    found = whole.endpoints
    return httpx.Client(base_url=found.admin, headers={"Authorization": f"Bearer {found.admin_key}"}, timeout=10)


def product(whole: LocalStack, stock: int = 10, **more: object) -> str:
    """A product of the test's own, on sale."""
    product_id = f"tea-{uuid4().hex[:8]}"
    with operator(whole) as desk:
        answer = desk.post("/admin/v1/products", json=listing(product_id, stock, **more))
    assert answer.status_code == 201, answer.text
    return product_id


def buyer(whole: LocalStack, name: str = "") -> Client:
    """Somebody new, or somebody by name."""
    return Client(*whole.endpoints.gateway, user=name or uuid4().hex)


def is_recent(at: datetime | None) -> bool:
    """Whether it was within this test."""
    return at is not None and abs(datetime.now(UTC) - at) < timedelta(seconds=60)


def report(whole: LocalStack, purchase: Purchase, outcome: str, **changed: Any) -> httpx.Response:
    """What a payment provider would send."""
    assert purchase.price is not None
    told = {
        "report_id": uuid4().hex,
        "purchase_id": purchase.purchase_id,
        "outcome": outcome,
        "amount_minor": purchase.price.total_minor,
        "currency": purchase.price.currency,
    } | changed
    body = json.dumps(told).encode()
    headers = {"Content-Type": "application/json", SIGNATURE_HEADER: signature(WEBHOOK_SECRET, int(time.time()), body)}
    return httpx.post(f"{whole.endpoints.gateway[0]}/v1/payments/webhook", content=body, headers=headers)


def test_a_purchase_is_confirmed_cancelled_and_refunded_before_its_buyers_eyes(whole: LocalStack) -> None:
    """Watched to its confirmation; cancelled; the refund is shown with its reason and time, and the unit is back."""
    tea = product(whole, 2)
    with buyer(whole) as ann:
        bought = ann.buy(tea, payment_method="ok")
        states = list(ann.watch(bought.purchase_id))
        assert states[-1].status == "confirmed"
        assert [state.version for state in states] == sorted({state.version for state in states})
        assert ann.product(tea).available == 1
        ann.cancel(bought.purchase_id)
        settled = ann.settled(bought.purchase_id, after=states[-1].version)
        assert (settled.status, settled.reason, settled.refund) == ("released", "cancelled", "done")
        assert is_recent(settled.changed_at)
        eventually(lambda: ann.product(tea).available == 2, 10, "the unit back on sale")
        with pytest.raises(Refused) as refused:
            ann.cancel(bought.purchase_id)
        assert (refused.value.kind, refused.value.problem["reason"]) == ("not-cancellable", "cancelled")


def test_a_declined_and_an_expired_purchase_say_so(whole: LocalStack) -> None:
    """Status, reason and time, in GET and in the last event."""
    tea, rushed = product(whole), product(whole, hold_ms=1_000)
    with buyer(whole) as ann:
        declined = ann.buy(tea, payment_method="declined")
        *_, last = ann.watch(declined.purchase_id)
        assert (last.status, last.reason, last.refund) == ("released", "payment_declined", "none")
        shown = ann.purchase(declined.purchase_id)
        assert (shown.version, shown.reason) == (last.version, last.reason)
        assert is_recent(shown.changed_at)
        expired = ann.settled(ann.buy(rushed, payment_method="unknown").purchase_id)
        assert (expired.status, expired.reason) == ("released", "hold_expired")
        assert is_recent(expired.changed_at)
        with pytest.raises(Refused) as refused:
            ann.buy(tea, 11)
        assert (refused.value.kind, refused.value.problem["reason"]) == ("rejected", "buyer_limit")
        assert ann.purchase(refused.value.problem["purchase_id"]).status == "rejected"
        # The list is read from Postgres, where the rejection of a moment ago may still be missing.
        eventually(lambda: [each.status for each in ann.purchases()] == ["rejected", "released", "released"])


def test_a_payment_provider_reports_once_or_more(whole: LocalStack) -> None:
    """A signed report confirms; again, or late, it is harmless; a wrong one changes nothing and is not believed."""
    tea = product(whole)
    with buyer(whole) as ann:
        held = ann.buy(tea, payment_method="unknown")
        assert report(whole, held, "approved", amount_minor=1).status_code == 202
        told = report(whole, held, "approved", report_id="evt-1")
        assert (told.status_code, told.json()) == (202, {"report_id": "evt-1", "status": "accepted"})
        confirmed = ann.settled(held.purchase_id)
        assert confirmed.status == "confirmed"
        for outcome in ("approved", "declined"):
            assert report(whole, held, outcome, report_id="evt-1").status_code == 202
        unsigned = httpx.post(f"{whole.endpoints.gateway[0]}/v1/payments/webhook", json={})
        assert (unsigned.status_code, unsigned.json()["type"]) == (401, "/problems/signature-invalid")
        ann.cancel(held.purchase_id)
        assert ann.settled(held.purchase_id, after=confirmed.version).reason == "cancelled"


def test_operators_cancel_one_order_and_all_of_a_product(whole: LocalStack) -> None:
    """Each is released and refunded, and the buyer is told by whom; pages list them all, with filters."""
    tea = product(whole, 10, per_buyer_limit=10)
    with buyer(whole) as ann, operator(whole) as desk:
        bought = [ann.settled(ann.buy(tea, payment_method="ok").purchase_id) for _ in range(3)]
        assert {each.status for each in bought} == {"confirmed"}
        one, path = bought[0], "/admin/v1/orders"
        for _ in range(2):
            assert desk.post(f"{path}/{one.purchase_id}/cancel").status_code in {202, 409}
        assert ann.settled(one.purchase_id, after=one.version).reason == "cancelled_by_operator"
        assert desk.post(f"{path}/97ee-0/cancel").status_code == 404
        assert desk.post(f"/admin/v1/products/{tea}/close").status_code == 200
        whole_product = desk.post(f"/admin/v1/products/{tea}/cancel-orders", headers={"Idempotency-Key": "all"})
        assert (whole_product.status_code, whole_product.json()["status"]) == (202, "cancelling")
        for each in bought[1:]:
            assert ann.settled(each.purchase_id, after=each.version).reason == "cancelled_by_operator"
        pages: list[dict[str, Any]] = []
        query = {"product_id": tea, "status": "released", "limit": "2"}
        while True:
            page = desk.get(path, params=query).json()
            pages += page["orders"]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert {order["purchase_id"] for order in pages} == {each.purchase_id for each in bought}
        assert {order["refund"] for order in pages} == {"done"}
        assert len({order["buyer_id"] for order in pages}) == 1
        other = desk.get(path, params=query | {"status": "confirmed"})
        assert other.status_code == 422
        mine = desk.get(path, params={"buyer_id": pages[0]["buyer_id"], "product_id": tea}).json()["orders"]
        assert len(mine) == 3


def test_a_list_goes_page_by_page_and_is_ones_own(whole: LocalStack) -> None:
    """Newest first; another's cursor is none; limits have bounds."""
    tea = product(whole)
    name = uuid4().hex
    with buyer(whole, name) as ann:
        bought = [ann.settled(ann.buy(tea).purchase_id).purchase_id for _ in range(3)]
        eventually(lambda: len(list(ann.purchases())) == 3, 10, "the rows")
        assert [each.purchase_id for each in ann.purchases(page_size=2)] == bought[::-1]
    url = f"{whole.endpoints.gateway[0]}/v1/purchases"
    cursor = httpx.get(url, params={"limit": 1}, headers={"X-User-Id": name}).json()["next_cursor"]
    for who, query in (
        ("another", {"cursor": cursor}),
        (name, {"cursor": cursor[:-2] + "AA"}),
        (name, {"cursor": "x" * 201}),
        (name, {"limit": -1}),
        (name, {"limit": 0}),
        (name, {"limit": 10**9}),
        (name, {"limit": "x"}),
    ):
        answer = httpx.get(url, params=query, headers={"X-User-Id": who})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body"), query
    assert httpx.get(url, headers={"X-User-Id": "another"}).json() == {"purchases": [], "next_cursor": None}


def test_the_client_goes_to_another_gateway_and_gives_up_in_time(whole: LocalStack) -> None:
    """A dead gateway is left for a living one, with the same key; when all are dead, it says that nothing is known."""
    tea = product(whole, 2)
    dead = "http://127.0.0.1:1"
    with Client(dead, *whole.endpoints.gateway, user=uuid4().hex) as ann:
        first = ann.buy(tea, key="once")
        assert ann.buy(tea, key="once").purchase_id == first.purchase_id
        assert ann.product(tea).available == 1
    with Client(dead, user="x", retries=Retries(attempts=3, first_s=0.01)) as nobody, pytest.raises(Unreachable):
        nobody.buy(tea)


def test_the_readme_of_the_client_runs_as_it_is_written(whole: LocalStack) -> None:
    """Against this stack, with a product called tea."""
    example = re.findall(r"```python\n(.*?)```", (ROOT / "clients/python/README.md").read_text(), re.DOTALL)[0]
    tea = product(whole, 3)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", example.replace('"tea"', f'"{tea}"')],
        env=os.environ | {"GATEWAY": whole.endpoints.gateway[0]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "released cancelled done" in ran.stdout
    assert f"{tea} open 3" in ran.stdout


def test_pauses_grow_are_cut_by_chance_and_end() -> None:
    """Doubling to a bound, never below what the server asked for, and only so often."""
    often = Retries(attempts=5, first_s=1, longest_s=4)
    assert [often.pause(n, None, 1.0) for n in range(1, 6)] == [1, 2, 4, 4, None]
    assert often.pause(1, None, 0.0) == 0.5
    assert often.pause(1, 3, 0.0) == 3.5
    assert often.pause(1, 60, 0.0) is None
