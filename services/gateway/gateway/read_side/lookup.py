"""The known state of a purchase, from the first source that has it: memory, its row in Postgres, or the proof that no
such purchase stood in the log. Also settles for the request batcher what only rows show."""

import asyncio
import time
from collections.abc import Sequence

from gateway.auth.ids import IdentityKey, PurchasePlace
from gateway.read_side.follower import Waiters
from gateway.read_side.freshness import Freshness
from gateway.read_side.postgres import Store, Unavailable
from gateway.read_side.projection import Projection
from gateway.read_side.purchase_state import Accepted, Answered, Purchase, Rejected, Reserved, buyer_of
from stampede_schemas.identifiers import PurchaseId

ROW_LAG_S = 0.1  # how long to leave the order-writer before its row is read again
ROWS_S_MAX = 0.1  # how long a purchase waits for its row before it goes to the log
FRESH_S_MAX = 0.5
OVERDUE_S = 1.0  # an acknowledged purchase without a decision for so long may be lost
RETIRED = "closed"  # the reason of a purchase that met a retired product and had no outcome


class Undetermined(Unavailable):
    """Whether there is such a purchase cannot be known now: the log or the rows are behind, or do not answer."""


class Lookup:
    """Answers questions about purchases. Raises Unavailable where nothing else than Postgres or the log could tell."""

    def __init__(
        self, projection: Projection, waiters: Waiters, store: Store, identity: IdentityKey, freshness: Freshness
    ) -> None:
        self._projection, self._memory, self._waiters = projection, projection.memory, waiters
        self._store, self._identity, self._freshness = store, identity, freshness

    async def find(self, purchase_id: str) -> Purchase | None:
        """The purchase as it is now; None: no such purchase stood in the log when called. Raises Unavailable."""
        place = self._identity.place_of(purchase_id)
        if place is None:
            return None
        known = self._memory.get(purchase_id)
        if isinstance(known, Accepted) and await self.overdue(known):
            known = self._memory.get(purchase_id)
        if known is None:
            return await self._not_in_memory(PurchaseId(purchase_id), place)
        if isinstance(known, Answered):
            return await self._answered(known)
        if isinstance(known, Reserved) and known.hold_until_ms is None:
            try:
                return await self._from_row(known.purchase_id) or known
            except Unavailable:
                return known
        return known

    async def change(self, purchase_id: str, version: int, seconds: float) -> Purchase | None:
        """The purchase once its version is above `version`, or as it is after `seconds`. Raises Unavailable."""
        deadline = time.monotonic() + seconds
        found = await self.find(purchase_id)
        while found is not None and found.version <= version and (left := deadline - time.monotonic()) > 0:
            # No event says when a row appears: it is read again.
            await self._waiters.changed(purchase_id, min(left, ROW_LAG_S) if isinstance(found, Answered) else left)
            found = await self.find(purchase_id)
        return found

    async def overdue(self, known: Accepted) -> bool:
        """Whether the log turns out to have lost what it acknowledged; checked only after some time."""
        if time.monotonic() - known.since_s < OVERDUE_S:
            return False
        await self._freshness.check(known.position.partition)
        return self._memory.get(known.purchase_id) is None

    async def requests_end(self, partition: int) -> int | None:
        """Where a partition of `requests` ends: all that stood in it when called lies below. None: not known now."""
        return (await self._freshness.ask((partition,))).get(partition)

    async def settle(self, purchase_ids: Sequence[PurchaseId]) -> set[PurchaseId]:
        """Take the rows of these purchases into memory; those whose absence is proven. Never raises."""
        try:
            async with asyncio.timeout(ROWS_S_MAX):
                rows, progress = await self._store.rows(purchase_ids)
        except (Unavailable, TimeoutError):
            return set()
        states = {one: self._take(rows.get(one), progress) for one in purchase_ids}
        return {one for one, state in states.items() if state is None and self._absent(one, progress)}

    async def _not_in_memory(self, purchase_id: PurchaseId, place: PurchasePlace) -> Purchase | None:
        asked_at = time.monotonic()
        rows, progress = await self._store.rows([purchase_id])
        if (state := self._take(rows.get(purchase_id), progress)) is not None:
            return state
        if place.partition is None:
            return None  # of the form before partitions stood in ids: such purchases have their rows
        if not await self._freshness.fresh(place.partition, asked_at, FRESH_S_MAX):
            raise Undetermined("the end of the log is not seen now")
        if (known := self._memory.get(purchase_id)) is not None:
            return await self._answered(known) if isinstance(known, Answered) else known
        if not self._absent(purchase_id, progress):
            raise Undetermined("the rows are behind what this gateway remembers")
        return None

    async def _answered(self, known: Answered) -> Purchase | None:
        """The log knows an answer that was given before this gateway's memory begins: only the row shows which."""
        try:
            rows, progress = await self._store.rows([known.purchase_id])
        except Unavailable:
            if buyer_of(known) is None:
                raise
            return known
        if (state := self._take(rows.get(known.purchase_id), progress)) is not None:
            return state
        if known.retired and progress.get(known.position.partition, -1) >= known.position.offset:
            return self._never_answered(known)
        if buyer_of(known) is None:
            raise Undetermined("the row of this purchase is not there yet")
        return known

    def _never_answered(self, known: Answered) -> Purchase | None:
        """It met a retired product, and no earlier answer has a row: nothing was reserved, and nothing ever will be."""
        mine = known.mine
        if mine is None:
            return None
        body = (mine.purchase_id, mine.buyer_id, mine.product_id, mine.quantity, mine.fingerprint)
        return self._memory.merge(Rejected(*body, known.position, mine.trace_id, RETIRED, None))

    def _absent(self, purchase_id: PurchaseId, progress: dict[int, int]) -> bool:
        """Whether a missing row, read with this progress, proves that nothing below this memory knows the purchase."""
        place = self._identity.place_of(purchase_id)
        if place is None or place.partition is None:
            return False
        return progress.get(place.partition, -1) >= self._memory.floor(place.partition)

    async def _from_row(self, purchase_id: PurchaseId) -> Purchase | None:
        rows, progress = await self._store.rows([purchase_id])
        return self._take(rows.get(purchase_id), progress)

    def _take(self, row: Purchase | None, progress: dict[int, int]) -> Purchase | None:
        """Take a row into memory. A rejected one that may have become a reservation behind this progress is none."""
        if row is None or (isinstance(row, Rejected) and self._behind(row, progress)):
            return None
        return self._memory.merge(row)

    def _behind(self, row: Rejected, progress: dict[int, int]) -> bool:
        partition = row.position.partition
        return self._memory.ids.may_hold(row.purchase_id) and progress.get(partition, -1) < self._memory.floor(
            partition
        )
