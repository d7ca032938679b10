"""The operator of a round: lists the products, and gives and takes units so that they sell out again and again."""

import asyncio
import contextlib
import time
from random import Random

import aiohttp

from devstack.endpoints import Endpoints
from devstack.failure import StackError

EVERY_S = (1.0, 3.0)
GIVEN, TAKEN = (8, 45), (1, 15)
TAKEN_SHARE = 0.2
UNITS = 40
HOLD_MS = 20_000
BUYER_LIMIT = 1_000
ANSWER_S_MAX = 10.0
RETRY_S = 0.2
LISTED_S_MAX = 30.0


class Till:
    """One operator, at the admin address of the stack."""

    def __init__(self, http: aiohttp.ClientSession, endpoints: Endpoints, dice: Random) -> None:
        self._http, self._endpoints, self._dice = http, endpoints, dice
        self._restocks = 0

    async def list(self, product_id: str, units: int = UNITS) -> None:
        """Put on sale; returns when every gateway shows it."""
        product = {
            "product_id": product_id,
            "name": "First flush, 100 g",
            "unit_price_minor": 1_990,
            "currency": "EUR",
            "stock": units,
            "per_buyer_limit": BUYER_LIMIT,
            "hold_ms": HOLD_MS,
        }
        await self._post("/admin/v1/products", product, product_id)
        async with asyncio.timeout(LISTED_S_MAX):
            for url in self._endpoints.gateway:
                while await self.shown(url, product_id) < 0:  # noqa: ASYNC110 - over HTTP
                    await asyncio.sleep(RETRY_S)

    async def wobble(self, product_id: str, seconds: float) -> None:
        """Units come, and now and then some go."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            await asyncio.sleep(self._dice.uniform(*EVERY_S))
            taken = self._dice.random() < TAKEN_SHARE
            await self.give(product_id, -self._dice.randint(*TAKEN) if taken else self._dice.randint(*GIVEN))

    async def give(self, product_id: str, quantity: int) -> None:
        """So many units more, or fewer."""
        self._restocks += 1
        path, key = f"/admin/v1/products/{product_id}/restock", f"{product_id}-{self._restocks}"
        await self._post(path, {"quantity": quantity}, key)

    async def shown(self, url: str, product_id: str) -> int:
        """How many units a gateway shows; -1: it shows no such product."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._http.get(f"{url}/v1/products/{product_id}") as answer:
                if answer.status == 200:
                    return int((await answer.json())["available"])
        return -1

    async def _post(self, path: str, body: dict[str, object], key: str) -> None:
        headers = {"Authorization": f"Bearer {self._endpoints.admin_key}", "Idempotency-Key": key}
        async with asyncio.timeout(LISTED_S_MAX):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with self._http.post(self._endpoints.admin + path, json=body, headers=headers) as answer:
                        if answer.status in {200, 201, 202, 409}:  # 409: there are not so many to take
                            return
                        if answer.status not in {404, 429, 503}:  # 404: it began to read a moment ago
                            raise StackError(f"{path} was answered {answer.status}: {await answer.text()}")
                await asyncio.sleep(RETRY_S)
