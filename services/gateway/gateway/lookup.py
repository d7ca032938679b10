"""What is known of a purchase, from wherever it is known: the projection first, the row in Postgres where that
must decide or knows more. Also the door: what may be refused without asking the log."""

import asyncio
import time

from gateway import problems
from gateway.admission import IdentityKey
from gateway.problems import Problem
from gateway.projection import Projection, Purchase, refused_at_the_door
from gateway.store import Away, NotMigrated, Store
from gateway.tail import BrokerClock, Tail, Watchers
from stampede_schemas.identifiers import Position, ProductId
from stampede_schemas.requests import AnyRequest, PurchaseRequested
from stampede_schemas.topics import partition_of

ROW_LAG_S = 0.1  # how long to leave the order-writer before its row is looked for again
UNKNOWN_WAIT_S = 0.5  # another gateway may have accepted it a moment ago


class Lookup:
    """Answers questions about purchases. Raises Away only where nothing else than the row could tell."""

    def __init__(self, projection: Projection, watchers: Watchers, store: Store, identity: IdentityKey) -> None:
        self._projection, self._watchers, self._store, self._identity = projection, watchers, store, identity

    async def find(self, purchase_id: str) -> Purchase | None:
        """The purchase as it is now; None: there is none. Raises Away."""
        if not self._identity.is_purchase_id(purchase_id):
            return None
        known = self._projection.purchase(purchase_id)
        if known is None or known.buyer_id is None or known.row_decides:
            return await self._from_row(purchase_id) or known or await self._from_another_gateway(purchase_id)
        if known.status == "reserved" and known.hold_until_ms is None:
            try:
                return await self._from_row(purchase_id) or known
            except Away:
                return known
        return known

    async def change(self, purchase_id: str, version: int, seconds: float) -> Purchase | None:
        """The purchase once its version is above `version`, or as it is after `seconds`. Raises Away."""
        deadline = time.monotonic() + seconds
        found = await self.find(purchase_id)
        while found is not None and found.version <= version and (left := deadline - time.monotonic()) > 0:
            await self._watchers.changed(purchase_id, min(left, ROW_LAG_S) if found.row_decides else left)
            found = await self.find(purchase_id)
        return found

    def remember(self, request: PurchaseRequested, position: Position) -> None:
        """The log has acknowledged this purchase."""
        self._projection.accepted(request, position)

    def fingerprint(self, purchase_id: str) -> str | None:
        """The body a known purchase was made with; None: not known here."""
        known = self._projection.purchase(purchase_id)
        return known.fingerprint or None if known is not None else None

    async def _from_row(self, purchase_id: str) -> Purchase | None:
        row = await self._store.purchase(purchase_id)
        return None if row is None else self._projection.merge(row)

    async def _from_another_gateway(self, purchase_id: str) -> Purchase | None:
        await self._watchers.changed(purchase_id, UNKNOWN_WAIT_S)
        return self._projection.purchase(purchase_id)


class SaleDoor:
    """Turns away what the log would surely refuse, for products whose decisions are known to the end."""

    def __init__(self, projection: Projection, tail: Tail, store: Store, clock: BrokerClock) -> None:
        self._projection, self._tail, self._store, self._clock = projection, tail, store, clock

    async def refusals(self, requests: list[AnyRequest]) -> list[Problem | None]:
        """One answer per request. Nobody whose purchase has an outcome is turned away: those go to the log again."""
        # A tick is mostly about one product: each is looked at once.
        by_product = {request.product_id: self._refusal(request.product_id) for request in requests}
        refusals = [
            by_product[request.product_id] if isinstance(request, PurchaseRequested) else None for request in requests
        ]
        turned_away = [
            request.purchase_id
            for request, refusal in zip(requests, refusals, strict=True)
            if refusal is not None and isinstance(request, PurchaseRequested)
        ]
        if not turned_away:
            return refusals
        try:
            async with asyncio.timeout(ROW_LAG_S):
                decided = await self._store.fingerprints([str(purchase_id) for purchase_id in turned_away])
        except (Away, NotMigrated, TimeoutError):
            return [None] * len(requests)  # nobody can vouch that these are new: the log decides
        return [
            None if isinstance(request, PurchaseRequested) and request.purchase_id in decided else refusal
            for request, refusal in zip(requests, refusals, strict=True)
        ]

    def _refusal(self, product_id: ProductId) -> Problem | None:
        if not self._tail.at_end(partition_of(product_id)):
            return None
        product = self._projection.products.get(product_id)
        if product is None:
            return Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id.")
        now_ms = self._clock.now_ms()
        match refused_at_the_door(product, now_ms):
            case "sold-out":
                detail = "Nothing is left; units on hold may come back." if product.may_reopen else "Nothing is left."
                return Problem(problems.SOLD_OUT, detail, extra={"may_reopen": product.may_reopen})
            case "not-open":
                shown = product.sale_status(now_ms)
                return Problem(problems.NOT_OPEN, f"The sale is {shown}.", extra={"sale_status": shown})
            case None:
                return None
