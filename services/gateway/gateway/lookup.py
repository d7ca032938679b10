"""What is known of a purchase, from wherever it is known: the projection first, then its claim in Redis, then the row
in Postgres, asked wherever it must decide or knows more. Also the door: what may be refused without asking the log."""

import asyncio
import time
from collections.abc import Mapping

from gateway import problems
from gateway.admission import IdentityKey
from gateway.claims import Claims
from gateway.problems import Problem
from gateway.projection import Projection, Purchase, refused_at_the_door
from gateway.store import Away, NotMigrated, Store
from gateway.tail import BrokerClock, Tail, Watchers
from stampede_schemas.identifiers import BuyerId, Position, ProductId, PurchaseId
from stampede_schemas.requests import PurchaseRequested
from stampede_schemas.topics import partition_of

ROW_LAG_S = 0.1  # how long to leave the order-writer before its row is looked for again
UNKNOWN_WAIT_S = 0.5  # another gateway may have accepted it a moment ago


class Unvouched(Away):
    """It may have been accepted, but who would know has forgotten: nobody can say that there is no such purchase."""


class Lookup:
    """Answers questions about purchases. Raises Away only where nothing else than the row could tell."""

    def __init__(
        self, projection: Projection, watchers: Watchers, store: Store, identity: IdentityKey, claims: Claims
    ) -> None:
        self._projection, self._watchers, self._store, self._identity = projection, watchers, store, identity
        self._claims = claims
        self._began = time.monotonic()

    async def find(self, purchase_id: str) -> Purchase | None:
        """The purchase as it is now; None: there is none. Raises Away."""
        if not self._identity.is_purchase_id(purchase_id):
            return None
        known = self._projection.purchase(purchase_id)
        if known is None or known.buyer_id is None:
            return await self._never_seen(purchase_id)
        if known.row_decides or (known.status == "reserved" and known.hold_until_ms is None):
            try:
                return await self._from_row(purchase_id) or known
            except Away:
                if known.row_decides and known.status != "pending":
                    raise
        return known

    async def change(self, purchase_id: str, version: int, seconds: float) -> Purchase | None:
        """The purchase once its version is above `version`, or as it is after `seconds`. Raises Away.

        Where the row decides, only the row's version counts.
        """
        deadline = time.monotonic() + seconds
        found = await self.find(purchase_id)
        while (
            found is not None
            and (found.version <= version or found.row_decides)
            and (left := deadline - time.monotonic()) > 0
        ):
            await self._watchers.changed(purchase_id, min(left, ROW_LAG_S) if found.row_decides else left)
            found = await self.find(purchase_id)
        return found

    def remember(self, request: PurchaseRequested, position: Position) -> None:
        """The log has acknowledged this purchase."""
        self._projection.accepted(request, position)
        if not self._claims.vouches:
            # The same key may have been accepted before, and forgotten: this may be the second of two positions.
            known = self._projection.purchase(request.purchase_id)
            assert known is not None
            known.row_decides = True

    def fingerprint(self, purchase_id: str) -> str | None:
        """The body a known purchase was made with; None: not known here."""
        known = self._projection.purchase(purchase_id)
        return known.fingerprint or None if known is not None else None

    def disputed(self, purchase_id: str) -> bool:
        """Whether another body than the one known here may be what was bought: only the row can tell.

        Whoever has let the second in while Redis could not vouch may not know of the first.
        """
        known = self._projection.purchase(purchase_id)
        return (known is not None and known.row_decides) or not self._claims.vouches

    async def bought(self, purchase_id: str) -> str | None:
        """The body that the row tells of; None: there is none, or Postgres does not say so in time."""
        try:
            async with asyncio.timeout(ROW_LAG_S):
                return (await self._store.fingerprints([purchase_id])).get(purchase_id)
        except (Away, NotMigrated, TimeoutError):
            return None

    async def _from_row(self, purchase_id: str) -> Purchase | None:
        row = await self._store.purchase(purchase_id)
        return None if row is None else self._projection.merge(row)

    async def _never_seen(self, purchase_id: str) -> Purchase | None:
        """What others know. The claim is read before the row: what loses its claim then has its row already."""
        claim, now_ms, vouched = await self._claims.find(purchase_id)
        pending = None if claim is None else Purchase(PurchaseId(purchase_id), BuyerId(claim.buyer))
        try:
            known = await self._from_row(purchase_id) or pending
        except Away:
            # Had a purchase as young as this gateway been decided, the log would have told us.
            if claim is None or now_ms - claim.at_ms > (time.monotonic() - self._began) * 1000:
                raise
            return pending
        if known is None and not vouched:
            await self._watchers.changed(purchase_id, UNKNOWN_WAIT_S)  # accepted a moment ago, elsewhere?
            known = self._projection.purchase(purchase_id)
            if known is None:
                raise Unvouched("it is not known now whether there is such a purchase")
        return known


class SaleDoor:
    """Turns away what the log would surely refuse, for products whose decisions are known to the end."""

    def __init__(self, projection: Projection, tail: Tail, store: Store, clock: BrokerClock) -> None:
        self._projection, self._tail, self._store, self._clock = projection, tail, store, clock

    def refusals(self, requests: list[PurchaseRequested]) -> list[Problem | None]:
        """One answer per request, if it is a new purchase."""
        # A tick is mostly about one product: each is looked at once.
        by_product = {product: self._refusal(product) for product in {request.product_id for request in requests}}
        return [by_product[request.product_id] for request in requests]

    async def decided(self, purchase_ids: list[str]) -> Mapping[str, str] | None:
        """Which of them have a row, for what body; None: Postgres does not say so in time, and nobody else can."""
        try:
            async with asyncio.timeout(ROW_LAG_S):
                return await self._store.fingerprints(purchase_ids)
        except (Away, NotMigrated, TimeoutError):
            return None

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
