"""The client: one call a route, and a purchase that ends in an answer whatever the network does."""

import random
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from stampede_client.answers import Catalogue, Page, Product, Purchase, Refused, Unreachable
from stampede_client.retries import Retries, worth_repeating

TIMEOUT_S = 10.0
WAIT_S_MAX = 5
SILENCE_S_MAX = 30.0  # of a stream; its server says something every ten seconds
RETRIES = Retries()
_purchase = msgspec.json.Decoder(Purchase)
_product = msgspec.json.Decoder(Product)
_page = msgspec.json.Decoder(Page)
_catalogue = msgspec.json.Decoder(Catalogue)


class Client:
    """Talks to one or more gateways for one buyer; a gateway that does not answer is left for the next.

    Args:
        urls: gateways, e.g. `http://127.0.0.1:8080`; all are the same to a buyer.
        token: a verified token; or `user`, where the gateway believes names (demonstrations).
        user: see `token`.
        retries: how often, and after what pauses.

    Not for several threads at once. Use as a context manager, or call `close`.
    """

    def __init__(self, *urls: str, token: str = "", user: str = "", retries: Retries = RETRIES) -> None:
        if not urls:
            raise ValueError("name at least one gateway")
        headers = {"Authorization": f"Bearer {token}"} if token else {"X-User-Id": user} if user else {}
        self._urls = [url.rstrip("/") for url in urls]
        self._http = httpx.Client(headers=headers, timeout=TIMEOUT_S)
        self._retries = retries

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def products(self) -> list[Product]:
        """All products."""
        return _catalogue.decode(self._call("GET", "/v1/products").content).products

    def product(self, product_id: str) -> Product:
        """One product. Raises Refused (`unknown-product`)."""
        return _product.decode(self._call("GET", f"/v1/products/{product_id}").content)

    def buy(
        self, product_id: str, quantity: int = 1, *, payment_method: str = "", key: str = "", wait_s: int = WAIT_S_MAX
    ) -> Purchase:
        """Buy, with one key for all attempts, so that however often it is sent it is one purchase.

        Args:
            product_id: what.
            quantity: how many units.
            payment_method: how; the server's default without it.
            key: the Idempotency-Key; a new one unless given. Give one to survive your own restart.
            wait_s: how long to wait for the decision, at most 5; 0: until it is in the log.

        Returns:
            The purchase: reserved or confirmed; pending if the decision took longer.

        Raises:
            Refused: no. With `purchase_id` in its problem it is final, otherwise the same key may win later.
            Unreachable: nobody answered; the same key must be sent again to learn what happened.
        """
        body: dict[str, object] = {"product_id": product_id, "quantity": quantity}
        if payment_method:
            body["payment_method"] = payment_method
        headers = {"Idempotency-Key": key or uuid4().hex} | ({"Prefer": f"wait={wait_s}"} if wait_s else {})
        return _purchase.decode(self._call("POST", "/v1/purchases", headers, json=body).content)

    def purchase(self, purchase_id: str, *, wait_s: int = 0, version: int | None = None) -> Purchase:
        """A purchase of this buyer now; or at its next change after `version`, waiting `wait_s` (at most 5) for it."""
        query = {"wait": wait_s} | ({} if version is None else {"version": version})
        return _purchase.decode(self._call("GET", f"/v1/purchases/{purchase_id}", params=query).content)

    def purchases(self, page_size: int = 50) -> Iterator[Purchase]:
        """All purchases of this buyer, newest first, page by page as they are asked for."""
        query: dict[str, str | int] = {"limit": page_size}
        while True:
            page = _page.decode(self._call("GET", "/v1/purchases", params=query).content)
            yield from page.purchases
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def cancel(self, purchase_id: str) -> None:
        """Ask for a purchase to be undone; `settled` tells when it is. Raises Refused (`not-cancellable`)."""
        self._call("POST", f"/v1/purchases/{purchase_id}/cancel")

    def settled(self, purchase_id: str, *, after: int = -1, within_s: float = 60.0) -> Purchase:
        """The purchase once it has a version above `after` and nothing is on its way any more; or as it is then."""
        deadline = time.monotonic() + within_s
        known = self.purchase(purchase_id)
        while (known.open or known.version <= after) and (left := deadline - time.monotonic()) > 0:
            known = self.purchase(purchase_id, wait_s=max(1, min(WAIT_S_MAX, int(left))), version=known.version)
        return known

    def watch(self, purchase_id: str) -> Iterator[Purchase]:
        """Each state of a purchase as it comes, to the last; goes on behind the last one seen when the line is cut.

        Raises Unreachable when that fails more often in a row than the retries allow.
        """
        seen, failed = -1, 0
        while True:
            try:
                headers = {"Last-Event-ID": str(seen)} if seen >= 0 else {}
                with self._http.stream(
                    "GET", f"{self._urls[0]}/v1/purchases/{purchase_id}/events", headers=headers
                ) as r:
                    if r.status_code == httpx.codes.NO_CONTENT:
                        return
                    if r.status_code != httpx.codes.OK:
                        r.read()
                        self._check(r)
                    for line in r.iter_lines():
                        if line.startswith("data: "):
                            purchase = _purchase.decode(line[len("data: ") :])
                            seen, failed = purchase.version, 0
                            yield purchase
            except (httpx.TransportError, Refused) as error:
                if isinstance(error, Refused) and not worth_repeating(error.kind):
                    raise
                failed += 1
                self._pause(failed, None, error)

    def _call(self, method: str, path: str, headers: dict[str, str] | None = None, **content: Any) -> httpx.Response:
        attempt = 0
        while True:
            attempt += 1
            told: float | None = None
            try:
                response = self._http.request(method, self._urls[0] + path, headers=headers, **content)
                self._check(response)
            except httpx.TransportError as error:
                problem: Exception = error
            except Refused as error:
                if not worth_repeating(error.kind):
                    raise
                problem = error
                after = response.headers.get("retry-after", "")
                told = float(after) if after.isdigit() else None
            else:
                return response
            self._pause(attempt, told, problem)

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            try:
                problem = response.json()
            except ValueError:
                problem = {"detail": "the answer is no problem document"}
            raise Refused(response.status_code, problem if isinstance(problem, dict) else {})

    def _pause(self, attempt: int, told_s: float | None, problem: Exception) -> None:
        pause = self._retries.pause(attempt, told_s, random.random())  # noqa: S311 - jitter is no secret
        if pause is None:
            if isinstance(problem, Refused):
                raise problem
            raise Unreachable(f"no answer after {attempt} attempts: {problem}") from problem
        self._urls.append(self._urls.pop(0))
        time.sleep(pause)
