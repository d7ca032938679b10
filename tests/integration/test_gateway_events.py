"""Server-sent events of a real gateway: the life of a purchase, and the sale as everybody sees it."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from eventlog.kafka import producer
from gateway.api.sse import FRAME_S_MIN, STREAMS_OF_ONE_MAX
from stampede_client import Client
from stampede_schemas.codec import encode
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId
from stampede_schemas.order_events import OrderConfirmed, OrderRefunded, OrderReleased
from stampede_schemas.topics import ORDERS, partition_of
from tests.support.builders.gateway import GatewayProcess
from tests.support.processes.sale import Sale, buy, order
from tests.support.processes.stack import eventually

Event = tuple[str | None, str, dict[str, Any]]  # id, name, data


def listen(client: httpx.Client, path: str, last: str | None = None) -> Iterator[Event]:
    """The events of a stream as they come, until its end."""
    headers = {"Last-Event-ID": last} if last is not None else {}
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        number, name = None, ""
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                number = value
            elif field == "event":
                name = value
            elif field == "data":
                yield number, name, json.loads(value)


def tell(sale: Sale, purchase: dict[str, Any], buyer_id: str, version: int, **changed: Any) -> None:
    """Say what an order-writer would: this purchase has become something else."""
    at = purchase["log_position"]
    kind: Any = {3: OrderConfirmed, 4: OrderReleased, 5: OrderRefunded}[version]
    event = kind(
        purchase_id=PurchaseId(purchase["purchase_id"]),
        version=version,
        buyer_id=BuyerId(buyer_id),
        product_id=ProductId(purchase["product_id"]),
        quantity=1,
        status="confirmed" if version == 3 else "released",
        reservation=Position(at["partition"], at["offset"], at["index"]),
        reservation_no=1,
        unit_price_minor=500,
        currency="EUR",
        payment_method="ok",
        occurred_at_ms=Millis(1_700_000_000_000 + version),
        **changed,
    )
    log = producer(sale.stack.kafka)
    log.produce(ORDERS.name, encode(event), event.purchase_id, partition_of(event.purchase_id))
    assert log.flush(10) == 0


def buyer_of(sale: Sale, name: str) -> str:
    """A buyer's pseudonym."""
    from gateway.auth.ids import IdentityKey, Subject
    from tests.support.builders.gateway import IDENTITY_KEY

    return IdentityKey(IDENTITY_KEY).buyer_id(Subject("header", name))


def test_a_purchase_tells_its_life_and_ends(sale: Sale) -> None:
    """Each state as an event, its version as id; after the last one the stream ends, and says so to who returns."""
    tea = sale.product(5)
    with sale.buyer("listener") as ann, sale.buyer() as bob:
        won = buy(ann, tea, wait=5).json()
        path = f"/v1/purchases/{won['purchase_id']}/events"
        events = listen(ann, path)
        assert next(events)[:2] == ("2", "reserved")
        tell(sale, won, buyer_of(sale, "listener"), 4, reason="payment_declined", refund="due")
        number, name, data = next(events)
        assert (number, name, data["reason"], data["refund"]) == ("4", "released", "payment_declined", "due")
        assert data["changed_at"] == "2023-11-14T22:13:20.004Z"
        tell(sale, won, buyer_of(sale, "listener"), 5, reason="payment_declined", refund="done")
        assert next(events)[2]["refund"] == "done"
        assert list(events) == []
        assert [event[0] for event in listen(ann, path, last="2")] == ["5"]
        assert ann.get(path, headers={"Last-Event-ID": "5"}).status_code == 204
        assert [event[0] for event in listen(ann, path, last="nonsense")] == ["5"]
        assert bob.get(path).status_code == 404
        assert httpx.get(sale.gateway.url + path).status_code == 401


def test_a_stream_goes_on_at_another_gateway(sale: Sale, tmp_path: Path) -> None:
    """A gateway that stops ends its streams at once; the version seen there is good here."""
    tea = sale.product(5)
    gateway = GatewayProcess(sale.stack, tmp_path)
    try:
        gateway.await_ready()
        with sale.buyer("mover", gateway) as there, sale.buyer("mover") as here, ThreadPoolExecutor(1) as pool:
            won = buy(there, tea, wait=5).json()
            path = f"/v1/purchases/{won['purchase_id']}/events"
            events = listen(there, path)
            number = next(events)[0]
            waiting = pool.submit(there.get, path.removesuffix("/events"), params={"wait": 5})
            gateway.process.terminate()
            assert list(events) == []
            time.sleep(0.5)  # not a wait for anything: by so much and more the port outlasts the streams
            assert httpx.get(f"{gateway.url}/livez").status_code == 200, "somebody is still connected"
            assert waiting.result().status_code == 200
            after = listen(here, path, last=number)
            tell(sale, won, buyer_of(sale, "mover"), 3)
            assert next(after)[:2] == ("3", "confirmed")
            assert list(after) == []
    finally:
        assert gateway.close() == 0, gateway.said()


def test_nobody_holds_more_streams_than_a_few(sale: Sale) -> None:
    """One more is refused, and a place that was left is free again."""
    tea = sale.product(5)
    with sale.buyer("greedy") as ann, contextlib.ExitStack() as streams:
        path = f"/v1/purchases/{buy(ann, tea, wait=5).json()['purchase_id']}/events"
        held = [streams.enter_context(ann.stream("GET", path)) for _ in range(STREAMS_OF_ONE_MAX)]
        assert {stream.status_code for stream in held} == {200}
        assert ann.get(path).json()["type"] == "/problems/rate-limited"
        held[0].close()

        def free() -> bool:
            with ann.stream("GET", path) as stream:
                return stream.status_code == 200

        eventually(free, what="a free place")


def test_the_sale_is_told_whole_and_then_by_what_changes(sale: Sale) -> None:
    """Stock and counts, to everybody, naming nobody; a frame is not sent before its time."""
    tea, other = sale.product(3), sale.product(3)
    with sale.buyer() as ann, httpx.Client(base_url=sale.gateway.url, timeout=10) as anybody:
        events = listen(anybody, "/v1/sale/events")
        _, name, whole = next(events)
        assert name == "sale"
        shown = {product["product_id"]: product for product in whole["products"]}
        assert (shown[tea]["available"], shown[other]["status"]) == (3, "open")
        won = buy(ann, tea, wait=5).json()
        seen = 0
        for _, name, change in events:
            seen += 1
            products = {product["product_id"]: product for product in change["products"]}
            assert name == "changes"
            assert other not in products
            assert won["purchase_id"] not in json.dumps(change)
            if tea in products and products[tea]["on_hold"]:
                assert products[tea]["available"] == 2
                assert change["decided"]["reserved"] == whole["decided"]["reserved"] + 1
                assert change["per_second"]["reserved"] > 0
                break
        assert seen <= 30


async def test_many_listeners_hear_the_same_few_frames(sale: Sale) -> None:
    """However much is decided, at most ten frames a second, and equal bytes for all."""
    tea, frames, began = sale.product(100_000), 12, time.monotonic()
    async with httpx.AsyncClient(base_url=sale.gateway.url, timeout=30, limits=httpx.Limits()) as client:
        buying = [asyncio.create_task(_buy_on(client, tea)) for _ in range(4)]
        heard = await asyncio.gather(*(_hear(client, frames) for _ in range(20)))
        took = time.monotonic() - began
        for one in buying:
            one.cancel()
        await asyncio.gather(*buying, return_exceptions=True)
    for found in heard:
        decided = [frame["decided"]["reserved"] for frame in map(json.loads, found)]
        assert decided[-1] - decided[0] > frames, "more was decided than there are frames"
    assert len({frame for found in heard for frame in found[1:]}) <= took / FRAME_S_MIN + 1


async def _buy_on(client: httpx.AsyncClient, product_id: str) -> None:
    """One purchase after the other, until cancelled."""
    while True:
        headers = {"X-User-Id": uuid4().hex, "Idempotency-Key": "k"}
        answer = await client.post("/v1/purchases", json=order(product_id), headers=headers)
        assert answer.status_code == 202


async def _hear(client: httpx.AsyncClient, frames: int) -> list[str]:
    """The data of that many frames, the first one that of everything."""
    found: list[str] = []
    async with client.stream("GET", "/v1/sale/events") as answer:
        async for line in answer.aiter_lines():
            found += [line.removeprefix("data: ")] if line.startswith("data: ") else []
            if len(found) == frames:
                break
    return found


def test_the_client_watches_on_when_its_gateway_is_killed(sale: Sale, tmp_path: Path) -> None:
    """No state twice, none missed that matters, and nothing for its user to do."""
    tea = sale.product(5)
    gateway = GatewayProcess(sale.stack, tmp_path)
    try:
        gateway.await_ready()
        with Client(gateway.url, sale.gateway.url, user="client") as ann:
            won = ann.buy(tea)
            states = ann.watch(won.purchase_id)
            assert next(states).status == "reserved"
            gateway.process.kill()
            position = httpx.get(
                f"{sale.gateway.url}/v1/purchases/{won.purchase_id}", headers={"X-User-Id": "client"}
            ).json()
            tell(sale, position, buyer_of(sale, "client"), 3)
            assert [(state.version, state.status) for state in states] == [(3, "confirmed")]
    finally:
        gateway.close()
