"""One way to ask at the edge, for all buyers: at a gateway, as a person, and every answer is noted."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from tests.chaos.edge.account import Look, Send, content
from tests.chaos.edge.fates import told_apart
from tests.chaos.edge.watch import now_ms

ANSWER_S_MAX = 20.0
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: closing sends RST


class Order(NamedTuple):
    """What a buyer wants once. Its Idempotency-Key is the buyer's own: for another product it is another purchase."""

    buyer: str
    number: int
    address: str
    product_id: str
    quantity: int
    method: str

    @property
    def key(self) -> str:
        """Of all purchases of all buyers."""
        return f"{self.buyer}/{self.number}/{self.product_id}"

    @property
    def header(self) -> str:
        """The Idempotency-Key."""
        return f"order-{self.number}"

    @property
    def headers(self) -> dict[str, str]:
        """Who asks, from where, under which key."""
        return {"X-User-Id": self.buyer, "X-Forwarded-For": self.address, "Idempotency-Key": self.header}

    @property
    def body(self) -> dict[str, str | int]:
        """As it is sent."""
        return {"product_id": self.product_id, "quantity": self.quantity, "payment_method": self.method}


@dataclass
class Client:
    """`gateways`: their URLs by name."""

    http: aiohttp.ClientSession
    gateways: Mapping[str, str]
    sends: list[Send] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    orders: dict[str, Order] = field(default_factory=dict)  # by key

    async def send(self, order: Order, gateway: str, *, wait_s: int = 0) -> Send | None:
        """Ask. None: nobody was there, so nothing was sent."""
        headers = order.headers | ({"Prefer": f"wait={wait_s}"} if wait_s else {})
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        url = f"{self.gateways[gateway]}/v1/purchases"
        began, status, raw, located, replayed = now_ms(), 0, b"", "", False
        try:
            async with self.http.post(url, json=order.body, headers=headers, timeout=timeout) as answer:
                raw = await answer.read()
                status = answer.status
                located = answer.headers.get("Location", "").rpartition("/")[2]
                replayed = "Idempotency-Replayed" in answer.headers
        except aiohttp.ClientConnectorError:
            return None
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        told = _send(order, gateway, began)._replace(
            status=status, raw=raw, located=located, replayed=replayed, waited=wait_s > 0
        )
        return self._note(order, told)

    async def cut(self, order: Order, gateway: str) -> Send | None:
        """Ask, and reset the connection at once: nobody hears the answer. None: nobody was there."""
        url = urlsplit(self.gateways[gateway])
        body = json.dumps(order.body)
        lines = {"Host": url.netloc, "Content-Type": "application/json", "Content-Length": len(body)} | order.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        try:
            _, writer = await asyncio.open_connection(url.hostname, url.port)
        except OSError:
            return None
        began = now_ms()
        writer.write(f"POST /v1/purchases HTTP/1.1\r\n{head}\r\n{body}".encode())  # at once in the kernel's hands
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
        return self._note(order, _send(order, gateway, began))

    async def look(self, order: Order, purchase_id: str, gateway: str) -> Look | None:
        """How it stands; None if nobody says so."""
        url, began = f"{self.gateways[gateway]}/v1/purchases/{purchase_id}", now_ms()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self.http.get(url, headers={"X-User-Id": order.buyer}) as answer:
                shown = content(await answer.read()) if answer.status == 200 else {}
                told = Look(
                    purchase_id, gateway, began, now_ms(), answer.status,
                    shown.get("version", 0), shown.get("status", ""),
                )  # fmt: skip
                self.looks.append(told)
                return told
        return None

    async def cancel(self, order: Order, purchase_id: str, gateway: str) -> None:
        """Take it back; whoever does not hear it does not matter."""
        url = f"{self.gateways[gateway]}/v1/purchases/{purchase_id}/cancel"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            who = {"X-User-Id": order.buyer}
            async with self.http.post(url, headers=who, skip_auto_headers={"Content-Type"}) as answer:
                await answer.read()

    def _note(self, order: Order, told: Send) -> Send:
        self.sends.append(told)
        self.orders.setdefault(order.key, order)
        return told


def _send(order: Order, gateway: str, began: float) -> Send:
    """As it was sent, and not answered."""
    body = told_apart(order.product_id, order.quantity, order.method)
    return Send(order.key, order.buyer, order.address, gateway, body, order.product_id, began, now_ms(), 0)
