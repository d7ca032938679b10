"""A crowd of buyers over HTTP, as people are: they ask, wait for the answer, come back while units are left.

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

CONNECTIONS_MAX = 1_000
ANSWER_S_MAX = 20.0
WAIT_S = 5  # how long one request may wait for its outcome
WINDOW_S = 0.05  # between two looks at the shop window
RETRY_S = 0.2
UNANSWERED = (0, b"")
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
    cancelled_share: float = 0.0  # take it back, at once or when it is confirmed
    duplicates_share: float = 0.0
    arrivals_per_s: float = 0.0
    hold_ms: int = 60_000
    patience_s: float = 60.0
    seed: int = 1
    product_id: str = field(default_factory=lambda: f"tea-{uuid4().hex[:10]}")


@dataclass(slots=True)
class Attempt:
    """One idempotency key of one buyer, and what came of it.

    `answers` are (status, body) of each POST, in order; status 0: no answer came, and nobody knows its fate. `times`:
    when each was sent and answered, in ms. `polled` are the (version, status) that were seen later.
    """

    buyer: str
    key: str
    method: str
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    polled: list[tuple[int, str]] = field(default_factory=list)
    purchase_id: str = ""
    outcome: str = "unanswered"  # confirmed, released, rejected; sold_out (an early rejection: nothing was logged)
    reason: str = ""
    twin: bool = False
    regrets: str = ""  # "at once" or "later": will take it back

    def answered(self, began: float, answer: tuple[int, bytes]) -> None:
        """Note an answer to what was sent at `began` (of perf_counter)."""
        self.answers.append(answer)
        self.times.append((began * 1_000, time.perf_counter() * 1_000))


@dataclass(slots=True)
class Journal:
    """Everything the crowd was told."""

    sale: Sale
    attempts: list[Attempt] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    began_at: float = 0.0
    ended_at: float = 0.0

    def count(self, outcome: str) -> int:
        """How many attempts ended so."""
        return sum(attempt.outcome == outcome for attempt in self.attempts)

    @property
    def sold(self) -> int:
        """How many are confirmed for good."""
        return sum(attempt.outcome == "confirmed" and not attempt.regrets for attempt in self.attempts)

    @property
    def logged(self) -> list[Attempt]:
        """Those that were told a purchase id: the log has them."""
        return [attempt for attempt in self.attempts if attempt.purchase_id]


class Crowd:
    """All buyers of one sale."""

    def __init__(self, endpoints: Endpoints, sale: Sale, tell: Callable[[Journal], None] = lambda _: None) -> None:
        for url in [*endpoints.gateway, endpoints.admin]:
            if urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}:
                raise StackError(f"{url} is not on this machine: a crowd is only ever sent to loopback addresses.")
        self._endpoints = endpoints
        self._sale = sale
        self._tell = tell
        self._chance = random.Random(sale.seed)  # noqa: S311 - a repeatable crowd, not a secret
        self._over = asyncio.Event()
        self._stock_seen = asyncio.Condition()
        self._available = 0
        self.journal = Journal(sale)

    async def run(self) -> Journal:
        """List the product, let everyone buy, return what they were told."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S_MAX, sock_read=ANSWER_S_MAX)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            await self._list(http)
            self.journal.began_at = time.time()
            window = asyncio.create_task(self._watch_window(http))
            buyers = [asyncio.create_task(self._buyer(http, *drawn)) for drawn in enumerate(self._arrivals())]
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._sale.patience_s):
                        await asyncio.gather(*buyers)
            finally:
                for task in [window, *buyers]:
                    task.cancel()
                results = await asyncio.gather(window, *buyers, return_exceptions=True)
                self.journal.ended_at = time.time()
        for result in results:
            if isinstance(result, Exception):
                raise result
        return self.journal

    async def _list(self, http: aiohttp.ClientSession) -> None:
        product = {
            "product_id": self._sale.product_id,
            "name": "First flush, 100 g",
            "unit_price_minor": 1_990,
            "currency": "EUR",
            "stock": self._sale.units,
            "per_buyer_limit": 1,
            "hold_ms": self._sale.hold_ms,
        }
        headers = {"Authorization": f"Bearer {self._endpoints.admin_key}", "Idempotency-Key": self._sale.product_id}
        async with http.post(f"{self._endpoints.admin}/admin/v1/products", json=product, headers=headers) as answer:
            if answer.status not in {200, 201, 202}:
                raise StackError(f"The product could not be listed: {answer.status} {await answer.text()}")
        url = f"{self._gateway()}/v1/products/{self._sale.product_id}"
        async with asyncio.timeout(ANSWER_S_MAX):
            while True:
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(WINDOW_S)

    def _gateway(self) -> str:
        return self._chance.choice(self._endpoints.gateway)

    async def _watch_window(self, http: aiohttp.ClientSession) -> None:
        """One pair of eyes on the shop window for all: who was turned away comes back when it shows stock."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with http.get(f"{self._gateway()}/v1/products/{self._sale.product_id}") as answer:
                    if answer.status == 200:
                        self._available = (await answer.json())["available"]
            if self._available > 0:
                async with self._stock_seen:
                    self._stock_seen.notify(3 * self._available)
            self._tell(self.journal)
            await asyncio.sleep(WINDOW_S)

    def _arrivals(self) -> Iterator[tuple[float, str, bool, str]]:
        """Each buyer's delay in seconds, way to pay, whether everything is sent twice, and when it is taken back."""
        at, sale = 0.0, self._sale
        for _ in range(sale.buyers):
            at += self._chance.expovariate(sale.arrivals_per_s) if sale.arrivals_per_s else 0.0
            drawn = self._chance.random() - sale.declined_share
            method = "declined" if drawn < 0 else "unknown" if drawn < sale.unknown_share else "ok"
            twin = self._chance.random() < sale.duplicates_share
            regrets = bool(sale.cancelled_share) and self._chance.random() < sale.cancelled_share
            yield at, method, twin, self._chance.choice(["at once", "later"]) if regrets else ""

    async def _buyer(self, http: aiohttp.ClientSession, number: int, arrival: tuple[float, str, bool, str]) -> None:
        delay_s, method, twin, regrets = arrival
        buyer, asked = f"buyer-{number}", False
        if delay_s:
            await asyncio.sleep(delay_s)
        while not self._over.is_set() or (delay_s and not asked):
            asked = True
            attempt = Attempt(buyer, uuid4().hex, method, twin=twin, regrets=regrets)
            self.journal.attempts.append(attempt)
            posts = [self._post(http, attempt) for _ in range(2 if twin else 1)]
            await asyncio.gather(*posts)
            if regrets == "at once" and attempt.purchase_id:
                await self._cancel(http, attempt)
            elif attempt.purchase_id and attempt.outcome in {"unanswered", "sold_out"}:
                # "Sold out" as an early rejection is no outcome: a concurrent duplicate may have got in a moment later.
                await self._follow(http, attempt)
            if regrets == "later" and attempt.outcome == "confirmed":
                await self._cancel(http, attempt)
            if self.journal.sold >= self._sale.units:
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

    async def _post(self, http: aiohttp.ClientSession, attempt: Attempt) -> None:
        """Send it until it is answered for good; the same key, so that doubt cannot become a second purchase."""
        body = {"product_id": self._sale.product_id, "quantity": 1, "payment_method": attempt.method}
        headers = {"X-User-Id": attempt.buyer, "Idempotency-Key": attempt.key, "Prefer": f"wait={WAIT_S}"}
        while True:
            began = time.perf_counter()
            try:
                async with http.post(f"{self._gateway()}/v1/purchases", json=body, headers=headers) as answer:
                    status, raw = answer.status, await answer.read()
                    found = _object(status, raw)
                    wait_s = float(answer.headers.get("Retry-After", RETRY_S))
            except asyncio.CancelledError:
                attempt.answered(began, UNANSWERED)
                raise
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                attempt.answered(began, UNANSWERED)
                await asyncio.sleep(RETRY_S)
                continue
            self.journal.answered_ms.append((time.perf_counter() - began) * 1_000)
            attempt.answered(began, (status, raw))
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
            await asyncio.sleep(WINDOW_S)


def _object(status: int, raw: bytes) -> dict[str, Any]:
    """Every answer is a JSON object, whatever its status; raises StackError where one is not."""
    try:
        found: dict[str, Any] = json.loads(raw)
    except ValueError:
        raise StackError(f"A purchase was answered {status}: {raw[:200].decode(errors='replace')}") from None
    return found
