"""The load generator: buyers over HTTP, as people are. They ask, wait for the answer, come back while units are left.

It only talks to the gateway, on loopback, and ends by itself: after `patience_s`, or when every unit is sold.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp

from devstack.endpoints import Endpoints
from devstack.failure import StackError
from replay.journal import UNANSWERED, Attempt, Journal, Told

CONNECTIONS_MAX = 1_000
ANSWER_S_MAX = 20.0
WAIT_S = 5  # how long one request may wait for its outcome
POLL_S = 0.05  # between two reads of the product, or of a purchase
RETRY_S = 0.2
ENDED = frozenset({"confirmed", "released", "rejected"})


@dataclass(frozen=True, slots=True)
class Sale:
    """What is sold, to whom. Shares are 0..1; everything random comes from `seed`.

    With `arrivals_per_s` buyers come one after the other at that mean rate, however slow the answers are (an open
    loop); who comes after the last unit is sold asks once all the same. At 0 all of them come at once.
    """

    units: int
    buyers: int
    declined_share: float = 0.0
    unknown_share: float = 0.0  # pay in a way that never answers: their holds run out
    cancelled_share: float = 0.0  # cancel, at once or when it is confirmed
    duplicates_share: float = 0.0
    arrivals_per_s: float = 0.0
    hold_ms: int = 60_000
    patience_s: float = 60.0
    seed: int = 1
    product_id: str = field(default_factory=lambda: f"tea-{uuid4().hex[:10]}")


class LoadGenerator:
    """All buyers of one sale. `journal` is what they were told so far; `began_at` the time of the first, in seconds."""

    def __init__(self, endpoints: Endpoints, sale: Sale) -> None:
        for url in [*endpoints.gateway, endpoints.admin]:
            if urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}:
                raise StackError(f"{url} is not on this machine: load is only ever sent to loopback addresses.")
        self._endpoints = endpoints
        self.sale = sale
        self._chance = random.Random(sale.seed)  # noqa: S311 - repeatable load, not a secret
        self._over = asyncio.Event()
        self._stock_seen = asyncio.Condition()
        self._available = 0
        self.journal = Journal(sale.product_id)
        self.began_at = 0.0

    async def run(self, show: Callable[[Journal], None] = lambda _: None) -> Journal:
        """List the product, let everyone buy, return what they were told. `show` is called with it now and then."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S_MAX, sock_read=ANSWER_S_MAX)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            await self._list(http)
            self.began_at = time.time()
            poller = asyncio.create_task(self._poll_stock(http, show))
            buyers = [asyncio.create_task(self._buyer(http, *drawn)) for drawn in enumerate(self._arrivals())]
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.sale.patience_s):
                        await asyncio.gather(*buyers)
            finally:
                for task in [poller, *buyers]:
                    task.cancel()
                results = await asyncio.gather(poller, *buyers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return self.journal

    async def _list(self, http: aiohttp.ClientSession) -> None:
        product = {
            "product_id": self.sale.product_id,
            "name": "First flush, 100 g",
            "unit_price_minor": 1_990,
            "currency": "EUR",
            "stock": self.sale.units,
            "per_buyer_limit": 1,
            "hold_ms": self.sale.hold_ms,
        }
        headers = {"Authorization": f"Bearer {self._endpoints.admin_key}", "Idempotency-Key": self.sale.product_id}
        async with http.post(f"{self._endpoints.admin}/admin/v1/products", json=product, headers=headers) as answer:
            if answer.status not in {200, 201, 202}:
                raise StackError(f"The product could not be listed: {answer.status} {await answer.text()}")
        url = f"{self._gateway()}/v1/products/{self.sale.product_id}"
        async with asyncio.timeout(ANSWER_S_MAX):
            while True:
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(POLL_S)

    def _gateway(self) -> str:
        return self._chance.choice(self._endpoints.gateway)

    async def _poll_stock(self, http: aiohttp.ClientSession, show: Callable[[Journal], None]) -> None:
        """Read the product for all buyers: those that were turned away come back when it has stock."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with http.get(f"{self._gateway()}/v1/products/{self.sale.product_id}") as answer:
                    if answer.status == 200:
                        self._available = (await answer.json())["available"]
            if self._available > 0:
                async with self._stock_seen:
                    self._stock_seen.notify(3 * self._available)
            show(self.journal)
            await asyncio.sleep(POLL_S)

    def _arrivals(self) -> Iterator[tuple[float, str, bool, str]]:
        """Each buyer's delay in seconds, way to pay, whether everything is sent twice, and when it is taken back."""
        at, sale = 0.0, self.sale
        for _ in range(sale.buyers):
            at += self._chance.expovariate(sale.arrivals_per_s) if sale.arrivals_per_s else 0.0
            drawn = self._chance.random() - sale.declined_share
            method = "declined" if drawn < 0 else "unknown" if drawn < sale.unknown_share else "ok"
            duplicate = self._chance.random() < sale.duplicates_share
            cancels = bool(sale.cancelled_share) and self._chance.random() < sale.cancelled_share
            yield at, method, duplicate, self._chance.choice(["at once", "later"]) if cancels else ""

    async def _buyer(self, http: aiohttp.ClientSession, number: int, arrival: tuple[float, str, bool, str]) -> None:
        delay_s, method, duplicate, cancels = arrival
        buyer, asked = f"buyer-{number}", False
        if delay_s:
            await asyncio.sleep(delay_s)
        while not self._over.is_set() or (delay_s and not asked):
            asked = True
            attempt = self.journal.begin(Attempt(buyer, uuid4().hex, duplicate=duplicate, cancels=cancels))
            posts = [self._post(http, attempt, method) for _ in range(2 if duplicate else 1)]
            await asyncio.gather(*posts)
            if cancels == "at once" and attempt.purchase_id:
                await self._cancel(http, attempt)
            elif attempt.purchase_id and attempt.outcome in {"unanswered", "sold_out"}:
                # "Sold out" as an early rejection is no outcome: a concurrent duplicate may have got in a moment later.
                await self._follow(http, attempt)
            if cancels == "later" and attempt.outcome == "confirmed":
                await self._cancel(http, attempt)
            if self.journal.sold >= self.sale.units:
                self._end()
            if attempt.outcome in {"confirmed", "released"}:
                return
            await self._until_stock_is_shown()

    def _end(self) -> None:
        self._over.set()

    async def _until_stock_is_shown(self) -> None:
        async def seen() -> None:
            async with self._stock_seen:
                await self._stock_seen.wait()

        looking, over = asyncio.create_task(seen()), asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait([looking, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (looking, over):
                task.cancel()
            await asyncio.gather(looking, over, return_exceptions=True)

    async def _post(self, http: aiohttp.ClientSession, attempt: Attempt, method: str) -> None:
        """Send it until it is answered for good; the same key, so that doubt cannot become a second purchase."""
        body = {"product_id": self.sale.product_id, "quantity": 1, "payment_method": method}
        headers = {"X-User-Id": attempt.buyer, "Idempotency-Key": attempt.key, "Prefer": f"wait={WAIT_S}"}
        while True:
            began = time.perf_counter()
            try:
                async with http.post(f"{self._gateway()}/v1/purchases", json=body, headers=headers) as answer:
                    status, raw = answer.status, await answer.read()
                    found = _object(status, raw)
                    wait_s = float(answer.headers.get("Retry-After", RETRY_S))
            except asyncio.CancelledError:
                _note(attempt, began)
                raise
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                _note(attempt, began)
                await asyncio.sleep(RETRY_S)
                continue
            _note(attempt, began, status, raw)
            if status in {429, 503} or (
                status == 409 and "Location" not in answer.headers and "in-flight" in found["type"]
            ):
                await asyncio.sleep(min(wait_s, 1.0))
                continue
            break
        location = answer.headers.get("Location")
        if location is not None:
            attempt.purchase_id = location.rpartition("/")[2]
        if status == 409:
            attempt.outcome = "rejected" if location else "sold_out"
            attempt.reason = str(found.get("reason") or found["type"].rpartition("/")[2])
        elif status in {201, 202, 200}:
            if found.get("status") in ENDED:
                attempt.outcome = found["status"]
        else:
            raise StackError(f"A purchase was answered {status}: {raw.decode(errors='replace')}")

    async def _cancel(self, http: aiohttp.ClientSession, attempt: Attempt) -> None:
        """Take the purchase back, and wait until that is done."""
        attempt.outcome = "unanswered"
        while True:
            url = f"{self._gateway()}/v1/purchases/{attempt.purchase_id}/cancel"
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                who = {"X-User-Id": attempt.buyer}
                async with http.post(url, headers=who, skip_auto_headers={"Content-Type"}) as answer:
                    if answer.status in {202, 409}:  # 409: it had ended otherwise
                        break
                    if answer.status not in {404, 429, 503}:
                        raise StackError(f"A cancellation was answered {answer.status}: {await answer.text()}")
            await asyncio.sleep(RETRY_S)
        await self._follow(http, attempt, ENDED - {"confirmed"})

    async def _follow(self, http: aiohttp.ClientSession, attempt: Attempt, until: frozenset[str] = ENDED) -> None:
        """Wait until the purchase has ended, by asking for its next change after what was seen last."""
        version = max((seen for seen, _ in attempt.polled), default=0)
        while True:
            url = f"{self._gateway()}/v1/purchases/{attempt.purchase_id}?wait={WAIT_S}&version={version}"
            try:
                async with http.get(url, headers={"X-User-Id": attempt.buyer}) as answer:
                    found = await answer.json(content_type=None)
                    # Another gateway may be a second behind: what is older than what was seen is no news.
                    if answer.status == 200 and found["version"] >= version:
                        version = found["version"]
                        attempt.polled.append((version, found["status"]))
                        if found["status"] in until:
                            attempt.outcome, attempt.reason = found["status"], found.get("reason") or ""
                            return
                    elif answer.status not in {200, 404, 429, 503}:
                        raise StackError(f"A purchase was answered {answer.status}: {found}")
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass
            await asyncio.sleep(POLL_S)


def _note(attempt: Attempt, began: float, status: int = UNANSWERED, body: bytes = b"") -> None:
    """Write down what came of a send that began then, by `perf_counter`."""
    attempt.answers.append(Told(status, body, began * 1_000, time.perf_counter() * 1_000))


def _object(status: int, raw: bytes) -> dict[str, Any]:
    """Every answer is a JSON object, whatever its status; raises StackError where one is not."""
    try:
        found: dict[str, Any] = json.loads(raw)
    except ValueError:
        raise StackError(f"A purchase was answered {status}: {raw[:200].decode(errors='replace')}") from None
    return found
