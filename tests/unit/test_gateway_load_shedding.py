"""What is given up first under load, and what never is."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from gateway.http.load_shedding import LAG_S_MAX, EventLoopLag, StatusReads
from gateway.metrics import Metrics


class Rig:
    """Reads in front of an app that answers when told to."""

    def __init__(self, reads_max: int = 2) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.lag = EventLoopLag(metrics.loop_lag)
        self.reads = StatusReads(self.app, self.lag, metrics.reads_shed, reads_max)
        self.go_on = asyncio.Event()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200, in its time."""
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, path: str = "/v1/purchases/x", method: str = "GET") -> tuple[int, dict[bytes, bytes]]:
        """Status and headers."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.reads({"type": "http", "method": method, "path": path}, receive, send)
        return int(sent[0]["status"]), dict(sent[0]["headers"])


async def test_reads_beyond_their_number_are_turned_away() -> None:
    """With a time to come back that is not the same for all; streams and purchases do not count among them."""
    rig = Rig(reads_max=2)
    waiting = [asyncio.create_task(rig.ask(path)) for path in ("/v1/products", "/v1/purchases/x", "/v1/sale/events")]
    await asyncio.sleep(0)
    answers = [await rig.ask() for _ in range(40)]
    assert {status for status, _ in answers} == {503}
    assert {headers[b"retry-after"] for _, headers in answers} == {b"1", b"2", b"3"}
    rig.go_on.set()
    assert [(await one)[0] for one in waiting] == [200, 200, 200]
    assert (await rig.ask())[0] == 200
    assert rig.registry.get_sample_value("stampede_reads_shed_total") == 40


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1/products", "GET", 503),
        ("/v1/sale/events", "GET", 503),
        ("/v1/products", "HEAD", 503),
        ("/v1/purchases", "POST", 200),
        ("/v1/purchases/x/cancel", "POST", 200),
        ("/readyz", "GET", 200),
        ("/livez", "GET", 200),
    ],
)
async def test_a_loop_that_is_late_serves_no_reads(path: str, method: str, status: int) -> None:
    """Purchases, cancellations and health go on."""
    rig = Rig()
    rig.go_on.set()
    rig.lag.seconds = 2 * LAG_S_MAX
    assert (await rig.ask(path, method))[0] == status
