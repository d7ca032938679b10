"""Two gateways, one log: a repeat gets its first answer wherever it goes, and Redis is for limits alone."""

import asyncio
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from gateway.admission.sale_gate import STALE_APPENDS_PER_S
from replay.evidence import Evidence
from replay.journal import Attempt, Journal, Limits
from replay.judge import Finding, judge
from replay.rules import s11_limiter
from tests.support.processes.sale import order
from tests.support.processes.stack import eventually
from tests.support.processes.two_gateways import TwoGateways, body_of, two_gateways


@pytest.fixture(scope="module")
def two() -> Iterator[TwoGateways]:
    """One stack for all."""
    with two_gateways() as running:
        yield running


def key() -> str:
    """A key of a buyer of its own."""
    return uuid4().hex


def kind(answer: httpx.Response) -> tuple[int, str]:
    """Status, and the last part of a problem's type."""
    return answer.status_code, str(answer.json().get("type", "")).rpartition("/")[2]


def units_left(two: TwoGateways, product_id: str) -> int:
    """By both gateways, once all that was sent before is decided: of what is asked for later, the decision is later."""
    assert two.buy(0, product_id, key(), wait=5).status_code == 201
    left = two.left(0, product_id)
    eventually(lambda: two.left(1, product_id) == left, what="the same at both gateways")
    return left + 1


def forget_purchase(two: TwoGateways, gateway: int, purchase_id: str) -> None:
    """Wait for its row; a gateway that begins anew remembers what changed within some seconds: this was longer ago."""
    found = "SELECT 1 FROM purchases WHERE purchase_id = $1 AND status <> 'reserved'"
    eventually(lambda: bool(two.sql(found, purchase_id)), what="its row")
    two.sql("UPDATE purchases SET updated_at = now() - interval '1 minute' WHERE purchase_id = $1", purchase_id)
    two.stack.restart(f"gateway-{gateway}")


def test_a_repeat_at_another_gateway_before_the_decision_is_the_same_purchase(two: TwoGateways) -> None:
    """The same bytes; it may stand in the log twice, and takes one unit."""
    tea, ann = two.product(), key()
    with two.frozen("inventory-0"):
        first, again = two.buy(0, tea, ann), two.buy(1, tea, ann)
        shown = two.show(1, first.json()["purchase_id"], ann)
        strange = two.show(1, first.json()["purchase_id"], "somebody-else")
    assert body_of(again) == body_of(first)
    assert first.json()["product_id"] == tea
    assert (shown.status_code, shown.json()["status"], strange.status_code) == (200, "pending", 404)
    assert two.show(1, first.json()["purchase_id"], ann, wait=5).json()["status"] in ("reserved", "confirmed")
    assert units_left(two, tea) == 9


def test_the_same_key_for_another_product_is_another_purchase(two: TwoGateways) -> None:
    """Today and after a restart: what was bought first stays what it is, at every gateway."""
    tea, cup, ann = two.product(), two.product(), key()
    first = two.buy(0, tea, ann, wait=5)
    assert first.status_code == 201
    forget_purchase(two, 0, first.json()["purchase_id"])
    other = two.buy(0, cup, ann, wait=5)
    assert other.status_code == 201
    assert other.json()["purchase_id"] != first.json()["purchase_id"]
    for gateway in (0, 1):
        kept = two.show(gateway, first.json()["purchase_id"], ann).json()
        assert (kept["status"], kept["product_id"]) == ("confirmed", tea)
    assert units_left(two, tea) == units_left(two, cup) == 9


def test_fifty_sends_at_once_over_two_gateways_are_one_purchase(two: TwoGateways) -> None:
    """One unit, one row, every answer 202 with the same bytes; another body among them is misuse, or in flight."""
    tea, ann = two.product(100), key()

    async def all_at_once() -> list[tuple[int, httpx.Response]]:
        async with httpx.AsyncClient(timeout=20) as client:

            async def send(number: int) -> tuple[int, httpx.Response]:
                quantity = 2 if number % 10 == 9 else 1
                url = two.stack.endpoints.gateway[number % 2]
                headers = {"X-User-Id": ann, "Idempotency-Key": ann}
                return quantity, await client.post(f"{url}/v1/purchases", json=order(tea, quantity), headers=headers)

            return list(await asyncio.gather(*map(send, range(50))))

    answers = asyncio.run(all_at_once())
    accepted = {body_of(answer) for _, answer in answers if answer.status_code == 202}
    assert len(accepted) == 1
    purchase_id = next(answer.json()["purchase_id"] for _, answer in answers if answer.status_code == 202)
    eventually(lambda: len(two.sql("SELECT 1 FROM purchases WHERE purchase_id = $1", purchase_id)) == 1, what="its row")
    (row,) = two.sql("SELECT quantity FROM purchases WHERE purchase_id = $1", purchase_id)
    for quantity, answer in answers:
        if answer.status_code != 202:
            assert quantity != row["quantity"], "what was bought is no misuse"
            assert kind(answer) in {(422, "idempotency-key-reused"), (409, "in-flight")}
    assert units_left(two, tea) == 100 - row["quantity"]


def test_another_body_is_compared_with_the_decision_wherever_it_is_known(two: TwoGateways) -> None:
    """At the gateway that saw it, at the other one, and at one that has only the row; waiting or not."""
    tea, ann = two.product(), key()
    first = two.buy(0, tea, ann, wait=5)
    forget_purchase(two, 1, first.json()["purchase_id"])
    for gateway in (0, 1):
        for wait in (0, 5):
            assert kind(two.buy(gateway, tea, ann, quantity=2, wait=wait)) == (422, "idempotency-key-reused")
        assert two.buy(gateway, tea, ann, wait=5).status_code == 201
    assert units_left(two, tea) == 9


def test_another_body_at_another_gateway_before_the_decision_learns_what_was_bought(two: TwoGateways) -> None:
    """Both are in the log; the first wins, the other waits for the decision and hears 422."""
    tea, ann = two.product(), key()

    async def both() -> tuple[httpx.Response, httpx.Response]:
        with two.frozen("inventory-0"):
            first = await asyncio.to_thread(two.buy, 0, tea, ann)
            other = asyncio.create_task(asyncio.to_thread(two.buy, 1, tea, ann, quantity=2, wait=5))
            await asyncio.to_thread(eventually, lambda: two.logged(tea, first.json()["purchase_id"]) == 2, 5, "both")
        return first, await other

    first, other = asyncio.run(both())
    assert first.status_code == 202
    assert kind(other) == (422, "idempotency-key-reused")
    assert units_left(two, tea) == 9


def test_sold_out_is_never_said_for_a_purchase_that_the_log_remembers(two: TwoGateways) -> None:
    """Reserved or rejected, after a restart and a flush of Redis; a stranger hears sold-out, and nothing is logged."""
    tea, ann, bob = two.product(1), key(), key()
    bought = two.buy(0, tea, ann)
    eventually(lambda: two.left(0, tea) == two.left(1, tea) == 0, what="sold out")
    rejected = reject(two, tea, bob)
    two.redis.forget()
    for purchase in (bought, rejected):
        forget_purchase(two, 1, purchase.json()["purchase_id"])
    for gateway in (0, 1):
        for buyer, first, quantity in ((ann, bought, 1), (bob, rejected, 2)):
            again = two.buy(gateway, tea, buyer, quantity=quantity)
            assert body_of(again) == body_of(first)
            assert again.headers["idempotency-replayed"] == "true"
        late, stranger = two.buy(gateway, tea, name := key()), name
        assert kind(late) == (409, "sold-out")
        assert "location" not in late.headers
        assert two.sql("SELECT 1 FROM purchases WHERE buyer_id = $1", stranger) == []
    assert two.buy(1, tea, ann, wait=5).status_code == 201
    assert kind(two.buy(1, tea, bob, quantity=2, wait=5)) == (409, "rejected")


def reject(two: TwoGateways, product_id: str, buyer: str) -> httpx.Response:
    """A purchase that the log rejects: two units are asked for while one is left, so that the gate lets it through."""
    headers = {"Authorization": f"Bearer {two.stack.endpoints.admin_key}", "Idempotency-Key": uuid4().hex}
    url = f"{two.stack.endpoints.admin}/admin/v1/products/{product_id}"
    httpx.post(f"{url}/restock", json={"quantity": 1}, headers=headers, timeout=10).raise_for_status()
    eventually(lambda: two.left(0, product_id) == two.left(1, product_id) == 1, what="one unit more")
    answer = two.buy(0, product_id, buyer, quantity=2)
    assert answer.status_code == 202
    headers["Idempotency-Key"] = uuid4().hex
    eventually(lambda: two.show(0, answer.json()["purchase_id"], buyer).json()["status"] == "rejected", what="its no")
    httpx.post(f"{url}/restock", json={"quantity": -1}, headers=headers, timeout=10).raise_for_status()
    eventually(lambda: two.left(0, product_id) == two.left(1, product_id) == 0, what="sold out again")
    return answer


def test_a_reservation_of_a_retired_product_is_never_shown_as_rejected(two: TwoGateways) -> None:
    """The fold has forgotten it; its row has not."""
    tea, ann = two.product(), key()
    first = two.buy(0, tea, ann, wait=5)
    forget_purchase(two, 0, first.json()["purchase_id"])
    headers = {"Authorization": f"Bearer {two.stack.endpoints.admin_key}"}
    url = f"{two.stack.endpoints.admin}/admin/v1/products/{tea}/retire"
    httpx.post(url, headers=headers, timeout=10).raise_for_status()
    two.stack.restart("gateway-1")
    for gateway in (0, 1):
        assert two.buy(gateway, tea, ann, wait=5).status_code == 201
        assert two.show(gateway, first.json()["purchase_id"], ann).json()["status"] == "confirmed"
        eventually(lambda g=gateway: kind(two.buy(g, tea, key())) == (409, "not-open"), what="the retirement")  # type: ignore[misc]


def test_an_unknown_purchase_is_404_and_503_while_that_cannot_be_known(two: TwoGateways) -> None:
    """The end of the log is asked for, and covered; with a frozen inventory and a longer log it is not."""
    tea, ann = two.product(), key()
    purchase_id = two.buy(0, tea, ann, wait=5).json()["purchase_id"]
    unknown = purchase_id[:-8] + "00000000"
    for gateway in (0, 1):
        assert two.show(gateway, unknown, ann).status_code == 404
    with two.frozen("inventory-0"):
        two.buy(0, tea, key())
        answer = two.show(1, unknown, ann)
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    eventually(lambda: two.show(1, unknown, ann).status_code == 404, what="the end is seen again")


@pytest.mark.parametrize("hurt", ["slow", "flushed", "hung", "away"])
def test_redis_changes_limits_and_nothing_else(two: TwoGateways, hurt: str) -> None:
    """The gate refuses as before, repeats get their first answers, unknown is 404: nothing goes to the log for it."""
    tea, ann = two.product(1), key()
    bought = two.buy(0, tea, ann, wait=5)
    purchase_id = bought.json()["purchase_id"]
    eventually(lambda: two.left(0, tea) == two.left(1, tea) == 0, what="sold out")
    unknown = purchase_id[:-8] + "00000000"
    before, stale, refused_early = two.records(tea), two.stale(), 0
    {
        "slow": lambda: two.link.slow(latency_s=0.06),
        "flushed": two.redis.forget,
        "hung": two.redis.freeze,
        "away": two.link.refuse,
    }[hurt]()
    try:
        for _ in range(10):
            for gateway in (0, 1):
                refused_early += kind(two.buy(gateway, tea, key())) == (409, "sold-out")
                assert two.buy(gateway, tea, ann, wait=5).status_code == 201
                # On a view that is not fresh in time it is 503: that is this machine's doing, and passes at once.
                eventually(lambda at=gateway: two.show(at, unknown, ann).status_code == 404, 1.0)  # type: ignore[misc]
    finally:
        two.link.heal()
        two.redis.thaw()
    judged_late = two.stale() - stale
    assert refused_early >= 20 - judged_late
    assert refused_early > 10, "the machine stood still all the time: nothing was tested"
    assert two.records(tea) <= before + judged_late


def test_frozen_workers_do_not_turn_a_refused_crowd_into_appended_records(two: TwoGateways) -> None:
    """A few hundred a second go to the log, the others are told to come again; afterwards all is as before."""
    tea, crowd, seconds = two.product(1), 100, 4.0
    cup = two.product(1, beside=tea)
    two.buy(0, tea, key(), wait=5)
    eventually(lambda: two.left(0, tea) == two.left(1, tea) == 0, what="sold out")
    before, told = two.logged(tea, '"PurchaseRequested"'), list[tuple[int, str]]()

    async def knock(until: float) -> None:
        url = urlsplit(two.stack.endpoints.gateway[0])
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        while time.monotonic() < until:
            body, name = json.dumps(order(tea)), key()
            writer.write(
                f"POST /v1/purchases HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-user-id: {name}\r\n"
                f"idempotency-key: {name}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
            told.append((int(head[9:12]), json.loads(answer).get("type", "")))
        writer.close()

    async def all_of_them() -> float:
        began = time.monotonic()
        await asyncio.gather(*(knock(began + seconds) for _ in range(crowd)))
        return time.monotonic() - began

    with two.frozen("inventory-0"):
        assert two.buy(1, cup, key()).status_code == 202  # its decision is missing: no view of this log is fresh now
        took_s = asyncio.run(all_of_them())
    appended = two.logged(tea, '"PurchaseRequested"') - before
    assert 0 < appended <= STALE_APPENDS_PER_S * (took_s + 2)  # seconds begun
    assert {one for one in told if one[0] != 202} == {(503, "/problems/overloaded")}
    eventually(lambda: kind(two.buy(0, tea, key())) == (409, "sold-out"), what="the gate as before")


FIVE_A_SECOND = "user:token_bucket:5/s"


def judged(product_id: str, attempts: list[Attempt], losses: int = 0) -> Finding:
    """What S11 says of it."""
    journal = Journal(product_id, attempts, Limits(FIVE_A_SECOND, 2, losses))
    (found,) = judge(Evidence({}, 0, "a test", journal=journal), (s11_limiter,))
    return found


def refused(attempts: list[Attempt]) -> int:
    """How many were told 429."""
    return sum(attempt.answers[0].status == 429 for attempt in attempts)


@pytest.fixture
def five_a_second(two: TwoGateways) -> Iterator[str]:
    """A product, under limits that an operator has just changed and that both gateways obey; then back."""
    tea = two.product(10_000)
    two.limit(FIVE_A_SECOND)
    eventually(lambda: refused(asyncio.run(two.send(key(), tea, 12, 0.0))) > 0, what="the new limits")
    yield tea
    two.limit("user:token_bucket:1000/s")
    eventually(lambda: refused(asyncio.run(two.send(key(), tea, 12, 0.0))) == 0, what="the old limits")


def test_limits_hold_over_two_gateways_and_a_restart(two: TwoGateways, five_a_second: str) -> None:
    """Who asks ten times too fast is let through as often as may be, who keeps to the limit always."""

    async def both() -> tuple[list[Attempt], list[Attempt]]:
        greedy = two.send(key(), five_a_second, 120, 0.02)
        polite = two.send(key(), five_a_second, 10, 0.22)
        return await asyncio.gather(greedy, polite)

    two.stack.restart("gateway-1")
    before = two.degraded()
    greedy, polite = asyncio.run(both())
    alone = two.degraded() != before  # on a busy machine Redis is late now and then, and a gateway limits to its share
    assert judged(five_a_second, greedy + polite, losses=4 if alone else 0).first == []
    assert alone or refused(polite) == 0
    assert 120 - refused(greedy) >= 10


def test_a_refusal_says_how_much_and_when(two: TwoGateways, five_a_second: str) -> None:
    """In the fields of the RateLimit draft, names in quotes, and in Retry-After."""
    hasty = key()
    answers = iter(lambda: two.buy(0, five_a_second, key(), buyer=hasty), None)
    refusal = next(answer for answer in answers if answer.status_code != 202)
    assert (refusal.status_code, refusal.json()["type"]) == (429, "/problems/rate-limited")
    assert refusal.headers["ratelimit-policy"] == '"user";q=5;w=1'
    assert refusal.headers["ratelimit"] == '"user";r=0;t=1'
    assert refusal.headers["retry-after"] == "1"
    assert "location" not in refusal.headers


def test_limits_hold_and_nobody_waits_while_redis_hangs(two: TwoGateways, five_a_second: str) -> None:
    """Each gateway limits to its share; all but one tick a second answer as fast as before."""
    before, counted = asyncio.run(two.send(key(), five_a_second, 60, 0.02)), two.degraded()

    async def hang() -> list[Attempt]:
        two.redis.freeze()
        try:
            return await two.send(key(), five_a_second, 100, 0.02)
        finally:
            two.redis.thaw()

    during = asyncio.run(hang())
    assert judged(five_a_second, during, losses=2).first == []
    assert 3 <= 100 - refused(during) <= 40
    usual = max(one.answers[0].answered_ms - one.answers[0].sent_ms for one in before)
    slow = [one for one in during if one.answers[0].answered_ms - one.answers[0].sent_ms > usual + 60]
    assert len(slow) <= 5  # of a hundred, on a machine that runs other tests beside this one
    assert all(now > then for now, then in zip(two.degraded(), counted, strict=True))
