"""What rows prove: a row shows a purchase, a missing one only its absence up to the progress that was read with it."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gateway.auth.ids import IdentityKey
from gateway.read_side.follower import Waiters
from gateway.read_side.freshness import Freshness
from gateway.read_side.lookup import Lookup, Undetermined
from gateway.read_side.projection import Projection
from gateway.read_side.purchase_memory import PurchaseMemory, accepted, decided
from gateway.read_side.purchase_state import Answered, Purchase, Rejected, Reserved
from stampede_schemas.identifiers import Position, PurchaseId
from tests.support.builders.gateway import IDENTITY_KEY, EndOfRequests, rejected, reserved, wanted

KEY = IdentityKey(IDENTITY_KEY)
HERE = 3
ID = PurchaseId(f"{KEY.kid}-{HERE:02x}-{'0' * 32}")
AT = Position(HERE, 5, 0)


class Rows:
    """A table with one row or none, as of some progress."""

    def __init__(self, row: Purchase | None, progress: int) -> None:
        self.row, self.progress = row, progress

    async def rows(self, purchase_ids: Sequence[PurchaseId]) -> tuple[dict[PurchaseId, Purchase], dict[int, int]]:
        """What it was made of."""
        found = {} if self.row is None else {self.row.purchase_id: self.row}
        return found, {HERE: self.progress}


class Rig:
    """A lookup over such a table; `end` is where `requests` ends, and everything before it is applied."""

    def __init__(self, row: Purchase | None = None, progress: int = 9, *, end: int | None = 0, most: int = 100) -> None:
        self.memory = PurchaseMemory(most)
        self.freshness = Freshness(EndOfRequests(end).ends, lambda *_: None)
        table: object = Rows(row, progress)
        self.lookup = Lookup(Projection(self.memory), Waiters(), table, KEY, self.freshness)  # type: ignore[arg-type]

    async def find(self) -> Purchase | None:
        """What is known of the purchase."""
        asking = asyncio.create_task(self.freshness.run())
        try:
            return await self.lookup.find(ID)
        finally:
            asking.cancel()


def as_reserved() -> Reserved:
    """Its row, or its decision."""
    state = decided(reserved(ID), AT, None)
    assert isinstance(state, Reserved)
    return state


def as_rejected() -> Rejected:
    """The same for a no."""
    state = decided(rejected(ID), AT, None)
    assert isinstance(state, Rejected)
    return state


async def test_no_row_and_a_fresh_view_without_it_is_no_such_purchase() -> None:
    """Read at a progress beyond all that was forgotten or is older than this gateway."""
    rig = Rig(None, 4)
    rig.memory.start_from(HERE, 4)
    assert await rig.find() is None


async def test_a_missing_row_behind_the_floor_proves_nothing() -> None:
    """An older database was restored, or the order-writer is behind."""
    rig = Rig(None, 3)
    rig.memory.start_from(HERE, 4)
    with pytest.raises(Undetermined):
        await rig.find()
    assert await rig.lookup.settle([ID]) == set()


async def test_without_a_fresh_view_nothing_is_denied() -> None:
    """It may stand in the log, undecided."""
    with pytest.raises(Undetermined):
        await Rig(None, end=None).find()


async def test_what_was_forgotten_while_the_row_was_asked_for_counts() -> None:
    """The floor is that of the moment when the answer is there."""
    rig = Rig(None, 4, most=1)
    rig.memory.start_from(HERE, 4)
    rig.memory.merge(as_reserved())
    rig.memory.merge(replace(as_reserved(), purchase_id=PurchaseId("another")))
    with pytest.raises(Undetermined):
        await rig.find()


async def test_a_rejected_row_is_none_while_it_may_have_become_a_reservation_since() -> None:
    """The log reserved for it later; that was told here and forgotten, and the rows are behind."""
    rig = Rig(as_rejected(), 6)
    rig.memory.ids.add_held(ID)
    rig.memory.start_from(HERE, 7)
    assert await rig.lookup.settle([ID]) == set()
    assert rig.memory.get(ID) is None
    with pytest.raises(Undetermined):
        await rig.find()
    rig = Rig(as_rejected(), 7)
    rig.memory.ids.add_held(ID)
    rig.memory.start_from(HERE, 7)
    found = await rig.find()
    assert found is not None
    assert found.status == "rejected"


async def test_a_purchase_that_met_a_retired_product_was_rejected_once_its_row_is_proven_missing() -> None:
    """Not before: it may have been reserved long ago."""
    mine = accepted(wanted(ID), AT, 0.0)
    for progress, status in ((4, "pending"), (5, "rejected")):
        rig = Rig(None, progress)
        rig.memory.merge(Answered(ID, AT, retired=True, mine=mine))
        found = await rig.find()
        assert found is not None
        assert found.status == status
    rig = Rig(as_reserved(), 5)
    rig.memory.merge(Answered(ID, AT, retired=True, mine=mine))
    assert await rig.find() == as_reserved()


async def test_an_id_of_another_key_or_partition_is_nobodys() -> None:
    """No question is asked for it."""
    rig = Rig(as_reserved())
    for foreign in ("zzzz-03-" + "0" * 32, f"{KEY.kid}-0c-{'0' * 32}", "nonsense", ""):
        assert await rig.lookup.find(foreign) is None


async def test_the_end_of_requests_is_queried_for_each_who_asks() -> None:
    """An answer to an earlier question does not cover what was appended since."""
    log = EndOfRequests(7)
    lookup = Lookup(Projection(), Waiters(), Rows(None, 0), KEY, Freshness(log.ends, lambda *_: None))  # type: ignore[arg-type]
    assert await lookup.requests_end(HERE) == 7
    log.end = 8
    assert await lookup.requests_end(HERE) == 8


async def test_an_end_that_is_unknown_or_of_a_lost_tail_is_none() -> None:
    """Below what was acknowledged here a broker names the end of a log that is not whole."""
    assert await Rig(end=None).lookup.requests_end(HERE) is None
    rig = Rig(end=7)
    rig.freshness.acknowledged(HERE, 7, 0.0)
    assert await rig.lookup.requests_end(HERE) is None
