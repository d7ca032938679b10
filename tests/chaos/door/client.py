"""One way to ask at the door, for all buyers: at a gateway, as a person, and every answer is noted."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp

from tests.chaos.door.account import Look, Send
from tests.chaos.door.watch import now_ms

ANSWER_S_MAX = 20.0


def told_apart(body: Mapping[str, str | int]) -> str:
    """Equal for bodies that say the same."""
    return f"{body['quantity']} {body['product_id']}, {body['payment_method']}"


class Order(NamedTuple):
    """What a key stands for. Keys are the buyer's own: two of them may choose the same."""

    buyer: str
    number: int
    address: str
    product_id: str
    quantity: int
    method: str

    @property
    def key(self) -> str:
        """Of all keys of all buyers."""
        return f"{self.buyer}/{self.number}"

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
    polled: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # by key: (version, status), never back
    products: dict[str, set[str]] = field(default_factory=dict)  # by key: for which it was sent

    async def send(self, order: Order, gateway: str, *, wait_s: int = 0, leave_s: float | None = None) -> Send | None:
        """Ask; with `leave_s` hang up after so long. None: nobody was there, so nothing was sent."""
        headers = {
            "X-User-Id": order.buyer,
            "X-Forwarded-For": order.address,
            "Idempotency-Key": f"order-{order.number}",
        }
        if wait_s:
            headers["Prefer"] = f"wait={wait_s}"
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX if leave_s is None else leave_s)
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
        told = Send(
            order.key, order.buyer, order.address, gateway, told_apart(order.body), order.product_id,
            began, now_ms(), status, raw, located, replayed,
        )  # fmt: skip
        self.sends.append(told)
        self.products.setdefault(order.key, set()).add(order.product_id)
        return told

    async def look(self, order: Order, purchase_id: str, gateway: str) -> str:
        """How it stands; empty if nobody says so."""
        url, began = f"{self.gateways[gateway]}/v1/purchases/{purchase_id}", now_ms()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self.http.get(url, headers={"X-User-Id": order.buyer}) as answer:
                found = await answer.json(content_type=None)
                self.looks.append(Look(purchase_id, gateway, began, now_ms(), answer.status))
                if answer.status == 200:
                    seen = self.polled.setdefault(order.key, [])
                    if not seen or found["version"] >= seen[-1][0]:
                        seen.append((found["version"], found["status"]))
                    return str(found["status"])
        return ""

    async def cancel(self, order: Order, purchase_id: str, gateway: str) -> None:
        """Take it back; whoever does not hear it does not matter."""
        url = f"{self.gateways[gateway]}/v1/purchases/{purchase_id}/cancel"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            who = {"X-User-Id": order.buyer}
            async with self.http.post(url, headers=who, skip_auto_headers={"Content-Type"}) as answer:
                await answer.read()
