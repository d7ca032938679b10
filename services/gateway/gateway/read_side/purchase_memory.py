"""The purchases that a gateway has in memory: bounded, the one untouched for longest forgotten first. Pure.

A forgotten purchase leaves two traces: its id (`RememberedIds`), and a floor. The floor of a partition is the highest
request offset that this gateway has forgotten or started from: a row that is missing at an older progress proves
nothing about a purchase that is not in memory.
"""

from collections import OrderedDict, deque

from msgspec.structs import replace

from gateway.read_side.purchase_state import Accepted, Answered, Ordered, Purchase, Rejected, Reserved, newest
from gateway.read_side.remembered_ids import RememberedIds
from stampede_schemas.identifiers import Position, PurchaseId
from stampede_schemas.topics import PARTITIONS

PURCHASES_MAX = 200_000


class PurchaseMemory:
    """States by purchase id."""

    def __init__(self, purchases_max: int = PURCHASES_MAX, ids: RememberedIds | None = None) -> None:
        self.ids = ids or RememberedIds()
        self._known: OrderedDict[PurchaseId, Purchase] = OrderedDict()
        self._purchases_max = purchases_max
        self._floors = [-1] * PARTITIONS
        self._passed = [-1] * PARTITIONS
        self._undecided: list[deque[tuple[int, PurchaseId]]] = [deque() for _ in range(PARTITIONS)]

    def get(self, purchase_id: str) -> Purchase | None:
        """The known state; None: nothing, or forgotten."""
        return self._known.get(PurchaseId(purchase_id))

    def floor(self, partition: int) -> int:
        """Up to which request offset only the rows know all purchases of the partition."""
        return self._floors[partition]

    def start_from(self, partition: int, source_offset: int) -> None:
        """Decisions up to here are in Postgres, and were never in this memory."""
        self._floors[partition] = max(self._floors[partition], source_offset)

    def tell(self, told: Purchase) -> Purchase:
        """Take a state from wherever it comes; what is known afterwards."""
        known = self._known.get(told.purchase_id)
        if known is None:
            return self._add(told)
        self._known.move_to_end(told.purchase_id)
        if (now := newest(known, told)) is not known:
            self._known[told.purchase_id] = now
        return now

    def accepted(self, told: Accepted) -> bool:
        """The log acknowledged it at this gateway. False: decisions have passed its place without it, it is lost."""
        at = told.position
        if told.purchase_id not in self._known and at.offset <= self._passed[at.partition]:
            return False
        if self.tell(told) is told:
            self._undecided[at.partition].append((at.offset, told.purchase_id))
        return True

    def decided(self, told: Reserved | Rejected) -> None:
        """The log decided it."""
        purchase_id, known = told.purchase_id, self._known.get(told.purchase_id)
        if isinstance(told, Reserved):
            self.ids.add_held(purchase_id)
        else:
            if isinstance(known, Accepted | Answered | None) and self.ids.may_hold(purchase_id):
                # A rejection never replaces what may have been told of a purchase that held units: its row tells.
                mine = replace(known, fingerprint="") if isinstance(known, Accepted) else None
                self.tell(Answered(purchase_id, told.position, mine=mine))
                return
            self.ids.add_rejected(told.position.partition, purchase_id)
        self.tell(told)

    def ignored(self, purchase_id: PurchaseId, at: Position, of: Position | None, *, mismatch: bool) -> None:
        """The log ignored the request at `at`, because of the answer at `of` (None: of a retired product's)."""
        known = self._known.get(purchase_id)
        if known is None:
            self._add(Answered(purchase_id, of or at, retired=of is None))
        elif isinstance(known, Accepted):
            # The acknowledged body is the first one's only if this very request was found equal to it.
            mine = known if known.position == at and not mismatch else replace(known, fingerprint="")
            self.tell(Answered(purchase_id, of or at, of is None, mine))

    def cancel_asked(self, purchase_id: str) -> None:
        """This gateway holds the log's acknowledgement of a cancellation."""
        known = self.get(purchase_id)
        if isinstance(known, Reserved | Ordered):
            self._known[known.purchase_id] = replace(known, cancel_asked=True)

    def passed(self, partition: int, source_offset: int) -> list[PurchaseId]:
        """Decisions are applied up to here: forget what was acknowledged below and was not decided. The log lost it."""
        undecided, lost = self._undecided[partition], list[PurchaseId]()
        self._passed[partition] = source_offset
        while undecided and undecided[0][0] <= source_offset:
            offset, purchase_id = undecided.popleft()
            lost += self._forget_lost(purchase_id, offset)
        return lost

    def tail_lost(self, partition: int, end: int, acknowledged_end: int) -> list[PurchaseId]:
        """`requests` ends at `end`, asked after `acknowledged_end` was known: forget what stood between the two."""
        undecided = self._undecided[partition]
        gone = [(offset, purchase_id) for offset, purchase_id in undecided if end <= offset < acknowledged_end]
        if gone:
            self._undecided[partition] = deque(each for each in undecided if not end <= each[0] < acknowledged_end)
        return [one for offset, purchase_id in gone for one in self._forget_lost(purchase_id, offset)]

    def _forget_lost(self, purchase_id: PurchaseId, offset: int) -> list[PurchaseId]:
        known = self._known.get(purchase_id)
        if not isinstance(known, Accepted) or known.position.offset != offset:
            return []
        del self._known[purchase_id]
        return [purchase_id]

    def _add(self, told: Purchase) -> Purchase:
        self._known[told.purchase_id] = told
        if len(self._known) > self._purchases_max:
            _, gone = self._known.popitem(last=False)
            self.start_from(gone.position.partition, gone.position.offset)
        return told
