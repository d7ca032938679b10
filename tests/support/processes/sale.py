"""A sale to test the gateway with: a real gateway and a real inventory on components of their own, over HTTP."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from eventlog.__main__ import provision
from tests.support.builders.gateway import ADMIN_KEY, GatewayProcess
from tests.support.processes.inventory import InventoryProcess
from tests.support.processes.servers import fetch
from tests.support.processes.stack import LocalStack, components


@dataclass
class Sale:
    """Everything that a test of the edge needs; one gateway and one inventory for the whole run."""

    stack: LocalStack
    gateway: GatewayProcess
    inventory: InventoryProcess
    folder: Path

    def buyer(self, name: str = "", gateway: GatewayProcess | None = None) -> httpx.Client:
        """A client of one buyer."""
        url = (gateway or self.gateway).url
        return httpx.Client(base_url=url, headers={"X-User-Id": name or uuid4().hex}, timeout=10)

    def operator(self) -> httpx.Client:
        """A client with the operators' key."""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return httpx.Client(base_url=self.gateway.admin_url, headers=headers, timeout=10)

    def product(self, stock: int = 10, **more: object) -> str:
        """A product of the test's own, on sale."""
        product_id = f"tea-{uuid4().hex[:8]}"
        with self.operator() as operator:
            answer = operator.post("/admin/v1/products", json=listing(product_id, stock, **more))
        assert answer.status_code == 201, answer.text
        return product_id

    def sql(self, query: str, *arguments: object) -> list[Any]:
        """Run one statement in Postgres."""
        return asyncio.run(fetch(self.stack.postgres, query, *arguments))


def listing(product_id: str, stock: int = 10, **more: object) -> dict[str, object]:
    """What an operator sends."""
    return {
        "product_id": product_id,
        "name": "Tea",
        "unit_price_minor": 500,
        "currency": "EUR",
        "stock": stock,
        "hold_ms": 600_000,
    } | more


def order(product_id: str, quantity: int = 1) -> dict[str, object]:
    """What a buyer sends."""
    return {"product_id": product_id, "quantity": quantity}


def buy(client: httpx.Client, product_id: str, key: str = "", quantity: int = 1, wait: int = 0) -> httpx.Response:
    """One POST."""
    headers = {"Idempotency-Key": key or uuid4().hex} | ({"Prefer": f"wait={wait}"} if wait else {})
    return client.post("/v1/purchases", json=order(product_id, quantity), headers=headers)


@contextlib.contextmanager
def open_sale(folder: Path) -> Iterator[Sale]:
    """Start everything, and stop it: its topics are written by one inventory only."""
    with components() as stack:
        provision(stack.kafka, 1)
        subprocess.run(
            [sys.executable, "-m", "order_writer", "migrate"], env={"STAMPEDE_POSTGRES": stack.postgres}, check=True
        )
        inventory = InventoryProcess(stack.kafka, folder)
        gateway = GatewayProcess(stack, folder)
        try:
            gateway.await_ready()
            inventory.await_ready()
            yield Sale(stack, gateway, inventory, folder)
        finally:
            inventory.close()
            assert gateway.close() == 0, gateway.said()
