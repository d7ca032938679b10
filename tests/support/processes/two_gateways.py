"""Two gateways over a real sale, and a Redis that the test may take from them or slow down."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
import httpx

from replay.journal import Attempt, Told
from stampede_schemas.topics import REQUESTS, partition_of
from telemetry.names import GATE_STALE
from tests.support.faults.proxy import Proxy, proxy
from tests.support.processes.inventory import Log
from tests.support.processes.redis_server import RedisServer, redis_server
from tests.support.processes.sale import listing, order
from tests.support.processes.servers import fetch
from tests.support.processes.stack import LocalStack, eventually, stack


@dataclass
class TwoGateways:
    """A stack with two gateways; `redis` is theirs alone, behind `link`."""

    stack: LocalStack
    redis: RedisServer
    link: Proxy

    def product(self, stock: int = 10, beside: str = "") -> str:
        """A product of the test's own, perhaps in the partition of another one; both gateways show it."""
        endpoints, ids = self.stack.endpoints, iter(lambda: f"tea-{uuid4().hex[:8]}", "")
        product_id = next(one for one in ids if not beside or partition_of(one) == partition_of(beside))
        headers = {"Authorization": f"Bearer {endpoints.admin_key}"}
        body = listing(product_id, stock)
        answer = httpx.post(f"{endpoints.admin}/admin/v1/products", json=body, headers=headers, timeout=10)
        assert answer.status_code == 201, answer.text
        for gateway in (0, 1):
            eventually(lambda gateway=gateway: self.left(gateway, product_id) == stock, 10, "the product")  # type: ignore[misc]
        return product_id

    def left(self, gateway: int, product_id: str) -> int:
        """How many units a gateway shows; -1: it knows no such product."""
        answer = httpx.get(f"{self.stack.endpoints.gateway[gateway]}/v1/products/{product_id}")
        return int(answer.json().get("available", -1))

    def buy(
        self, gateway: int, product_id: str, key: str, *, buyer: str = "", quantity: int = 1, wait: int = 0
    ) -> httpx.Response:
        """One POST; the key names the buyer too, unless told otherwise."""
        headers = {"X-User-Id": buyer or key, "Idempotency-Key": key} | ({"Prefer": f"wait={wait}"} if wait else {})
        url = f"{self.stack.endpoints.gateway[gateway]}/v1/purchases"
        return httpx.post(url, json=order(product_id, quantity), headers=headers, timeout=20)

    def show(self, gateway: int, purchase_id: str, buyer: str, wait: int = 0) -> httpx.Response:
        """One GET, waiting for the first decision if asked to."""
        url = f"{self.stack.endpoints.gateway[gateway]}/v1/purchases/{purchase_id}"
        asked = {"wait": wait, "version": 0} if wait else {}
        return httpx.get(url, params=asked, headers={"X-User-Id": buyer}, timeout=20)

    def limit(self, line: str) -> None:
        """Put other limits in force, as an operator does."""
        port = self.stack.status()["ratelimit-0"]["port"]
        headers = {"Authorization": f"Bearer {self.stack.endpoints.admin_key}"}
        answer = httpx.put(f"http://127.0.0.1:{port}/v1/policies", json={"limits": line}, headers=headers)
        assert answer.status_code == 200, answer.text

    def degraded(self) -> list[float]:
        """How many requests each gateway has judged without Redis."""
        return [
            float(text.partition("\nstampede_limit_checks_degraded_total ")[2].split()[0]) for text in self._metrics()
        ]

    def stale(self) -> int:
        """How many purchases the gates have judged without a fresh view: this machine stood still for 100 ms."""
        lines = [
            line for text in self._metrics() for line in text.splitlines() if line.startswith(f"{GATE_STALE}_total")
        ]
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))

    def _metrics(self) -> list[str]:
        return [httpx.get(f"{each['ops']}/metrics").text for each in self.stack.endpoints.processes["gateway"]]

    async def send(self, buyer: str, product_id: str, count: int, every_s: float) -> list[Attempt]:
        """So many purchases by one buyer, one after the other begun at that pace, at one gateway and the other."""
        urls, attempts = self.stack.endpoints.gateway, list[Attempt]()

        async def one(client: httpx.AsyncClient, number: int) -> None:
            key = f"{buyer}-{number}"
            sent = time.perf_counter() * 1_000
            answer = await client.post(
                f"{urls[number % 2]}/v1/purchases",
                json=order(product_id),
                headers={"X-User-Id": buyer, "Idempotency-Key": key},
            )
            told = Told(answer.status_code, answer.content, sent, time.perf_counter() * 1_000)
            purchase_id = answer.json().get("purchase_id", "")
            attempts.append(Attempt(buyer, key, purchase_id, "", answers=[told], line=number))

        async with httpx.AsyncClient(timeout=20) as client, asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(client, number))
                await asyncio.sleep(every_s)
        return attempts

    def logged(self, product_id: str, purchase_id: str) -> int:
        """How many times a purchase (or another text) stands in the log."""
        records = Log(self.stack.kafka).records(REQUESTS.name, partition_of(product_id))
        return sum((record.value or b"").count(purchase_id.encode()) for record in records)

    def records(self, product_id: str) -> int:
        """How many records the partition of a product has in the log."""
        return len(Log(self.stack.kafka).records(REQUESTS.name, partition_of(product_id)))

    def sql(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement in Postgres."""
        return asyncio.run(fetch(self.stack.postgres, query, *arguments))

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A process that stands still. For less than ten seconds, or it loses its session."""
        self.stack.kill(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.stack.kill(name, signal.SIGCONT)


@contextlib.contextmanager
def two_gateways(limits: str = "user:token_bucket:1000/s") -> Iterator[TwoGateways]:
    """Everything, gone at the end."""
    with redis_server() as redis, proxy(redis.port) as link:
        url = f"redis://127.0.0.1:{link.port}"
        env = {"STAMPEDE_REDIS": url, "STAMPEDE_LIMITS": limits, "STAMPEDE_GATEWAYS": "2"}
        with stack(env, gateway=2) as running:
            yield TwoGateways(running, redis, link)


def body_of(answer: httpx.Response) -> tuple[int, bytes, str]:
    """What must be the same each time: status, bytes, Location."""
    return answer.status_code, answer.content, answer.headers.get("location", json.dumps(None))
