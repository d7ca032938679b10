"""The purchases that a gateway has in memory, and how what it learns of one becomes its known state. Pure.

Acknowledgements, decisions, order events and rows arrive in any order. The known state never falls in (version,
status): a rejection is version 1, a reservation version 2, order events begin at 3, and none depends on its source.

The memory is bounded, the purchase untouched for longest is forgotten first and leaves two traces: its id
(`RememberedIds`), and a floor. The floor of a partition is the highest request offset that this gateway has forgotten
or started from: a row that is missing at an older progress proves nothing about a purchase that is not in memory.
"""

from collections import OrderedDict, deque

from msgspec.structs import replace

from gateway.read_side.purchase_state import Accepted, Answered, Ordered, Purchase, Rejected, Reserved
from stampede_schemas.decisions import Rejected as RejectedDecision
from stampede_schemas.decisions import Reserved as ReservedDecision
from stampede_schemas.identifiers import Millis, Position, PurchaseId
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import PurchaseRequested
from stampede_schemas.topics import PARTITIONS
from telemetry.traceparent import trace_id_in

PURCHASES_MAX = 200_000
# Per partition. The inventory's fold remembers two generations of as many; three are kept here, since a generation
# begins here with this process, and there with the log.
REJECTED_GENERATION_MAX = 250_000
GENERATIONS = 3
HELD_MAX = 1_000_000  # of the first filter; each following one holds twice as many
_BITS_PER_ID = 24  # with three probes at most 0.16 % of the ids that were never added
_PROBES = 3
_RANK: dict[str, int] = {"pending": 0, "rejected": 1, "reserved": 1, "confirmed": 2, "released": 3}


class BloomFilter:
    """A set of ids without their text, in `_BITS_PER_ID` bits each and rounded up; it is full after `ids_max`."""

    __slots__ = ("_bits", "_mask", "count", "ids_max")

    def __init__(self, ids_max: int) -> None:
        size = 1 << (ids_max * _BITS_PER_ID - 1).bit_length()
        self._bits, self._mask = bytearray(size >> 3), size - 1
        self.count, self.ids_max = 0, ids_max

    def add(self, purchase_id: str) -> None:
        """Remember an id."""
        at = hash(purchase_id)  # of this process alone, and kept by the text itself
        step, mask, bits = (at >> 32) | 1, self._mask, self._bits
        for _ in range(_PROBES):
            bits[(at & mask) >> 3] |= 1 << (at & 7)
            at += step
        self.count += 1

    def __contains__(self, purchase_id: str) -> bool:
        at = hash(purchase_id)
        step, mask, bits = (at >> 32) | 1, self._mask, self._bits
        for _ in range(_PROBES):
            if not bits[(at & mask) >> 3] >> (at & 7) & 1:
                return False
            at += step
        return True


class RememberedIds:
    """The ids of purchases that must never be denied: all that ever held units, and the rejections that the fold still
    remembers. Fed with every decision, and at the start with what Postgres holds.

    Full records are forgotten; these are not. A Bloom filter may claim an id that it was never given: then a row is
    read in vain. It never misses one that it was given.
    """

    def __init__(self, generation_max: int = REJECTED_GENERATION_MAX, held_max: int = HELD_MAX) -> None:
        self._generation_max = generation_max
        self._held = [BloomFilter(held_max)]
        self._rejected: dict[int, list[BloomFilter]] = {}  # by partition: the generation being filled, those before

    def add_held(self, purchase_id: PurchaseId) -> None:
        """It holds units, or once did."""
        if self._held[-1].count >= self._held[-1].ids_max:
            self._held.append(BloomFilter(self._held[-1].ids_max * 2))
        self._held[-1].add(purchase_id)

    def add_rejected(self, partition: int, purchase_id: PurchaseId) -> None:
        """The log rejected it. At least as many of the latest rejections are remembered as the fold remembers."""
        generations = self._rejected.get(partition)
        if generations is None:
            generations = self._rejected[partition] = [BloomFilter(self._generation_max)]
        if generations[0].count >= self._generation_max:
            generations = [BloomFilter(self._generation_max), *generations[: GENERATIONS - 1]]
            self._rejected[partition] = generations
        generations[0].add(purchase_id)

    def may_hold(self, purchase_id: PurchaseId) -> bool:
        """Whether it may hold units or once did; False is certain."""
        return any(purchase_id in held for held in self._held)

    def may_know(self, partition: int, purchase_id: PurchaseId) -> bool:
        """Whether the log may have answered it; False is certain."""
        for held in self._held:
            if purchase_id in held:
                return True
        for rejected in self._rejected.get(partition, ()):  # noqa: SIM110 - a loop costs half of what any() does
            if purchase_id in rejected:
                return True
        return False


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

    def merge(self, state: Purchase) -> Purchase:
        """Take a state from wherever it comes; what is known afterwards."""
        known = self._known.get(state.purchase_id)
        if known is None:
            return self._add(state)
        self._known.move_to_end(state.purchase_id)
        if (now := newest(known, state)) is not known:
            self._known[state.purchase_id] = now
        return now

    def accepted(self, state: Accepted) -> bool:
        """The log acknowledged it at this gateway. False: decisions have passed its place without it, it is lost."""
        at = state.position
        if state.purchase_id not in self._known and at.offset <= self._passed[at.partition]:
            return False
        if self.merge(state) is state:
            self._undecided[at.partition].append((at.offset, state.purchase_id))
        return True

    def decided(self, state: Reserved | Rejected) -> None:
        """The log decided it."""
        purchase_id, known = state.purchase_id, self._known.get(state.purchase_id)
        if isinstance(state, Reserved):
            self.ids.add_held(purchase_id)
        else:
            if isinstance(known, Accepted | Answered | None) and self.ids.may_hold(purchase_id):
                # A rejection never replaces a state that a purchase with units may have had: its row shows it.
                mine = replace(known, fingerprint="") if isinstance(known, Accepted) else None
                self.merge(Answered(purchase_id, state.position, mine=mine))
                return
            self.ids.add_rejected(state.position.partition, purchase_id)
        self.merge(state)

    def ignored(self, purchase_id: PurchaseId, at: Position, of: Position | None, *, mismatch: bool) -> None:
        """The log ignored the request at `at`, because of the answer at `of` (None: of a retired product's)."""
        known = self._known.get(purchase_id)
        if known is None:
            self._add(Answered(purchase_id, of or at, retired=of is None))
        elif isinstance(known, Accepted):
            # The acknowledged body is the first one's only if this very request was found equal to it.
            mine = known if known.position == at and not mismatch else replace(known, fingerprint="")
            self.merge(Answered(purchase_id, of or at, of is None, mine))

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
        """`requests` ends at `end`, queried after `acknowledged_end` was known: forget what stood between the two."""
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

    def _add(self, state: Purchase) -> Purchase:
        self._known[state.purchase_id] = state
        if len(self._known) > self._purchases_max:
            _, gone = self._known.popitem(last=False)
            self.start_from(gone.position.partition, gone.position.offset)
        return state


def newest(known: Purchase | None, state: Purchase) -> Purchase:
    """`known` and `state` as one state, whichever of the two came first. Equal states complete each other."""
    if known is None:
        return state
    high, low = (state, known) if _rank(state) > _rank(known) else (known, state)
    if isinstance(high, Answered) or isinstance(low, Answered) or isinstance(high, Accepted):
        return high
    if high.position == low.position:
        if not high.fingerprint and low.fingerprint:
            high = replace(high, fingerprint=low.fingerprint)
        if high.trace_id is None and low.trace_id is not None:
            high = replace(high, trace_id=low.trace_id)
        if isinstance(high, Reserved) and isinstance(low, Reserved) and high.hold_until_ms is None:
            high = replace(high, hold_until_ms=low.hold_until_ms)
    if isinstance(high, Ordered) and isinstance(low, Reserved | Ordered) and low.cancel_asked:
        high = replace(high, cancel_asked=True)
    return high


def _rank(known: Purchase) -> tuple[int, int, bool]:
    return known.version, _RANK[known.status], isinstance(known, Answered)


def accepted(request: PurchaseRequested, position: Position, now_s: float) -> Accepted:
    """The log acknowledged this request at this gateway."""
    return Accepted(
        request.purchase_id,
        request.buyer_id,
        request.product_id,
        request.quantity,
        request.fingerprint,
        position,
        trace_id_in(request.traceparent),
        now_s,
    )


def decided(
    decision: ReservedDecision | RejectedDecision, position: Position, at_ms: Millis | None
) -> Reserved | Rejected:
    """The log decided the request at `position`, which was appended at `at_ms`."""
    body = (
        decision.purchase_id,
        decision.buyer_id,
        decision.product_id,
        decision.quantity,
        decision.fingerprint,
        position,
        trace_id_in(decision.traceparent),
    )
    if isinstance(decision, RejectedDecision):
        return Rejected(*body, decision.reason, at_ms)
    return Reserved(*body, decision.reservation_no, decision.unit_price_minor, decision.currency, at_ms)


def ordered(event: AnyOrderEvent) -> Ordered:
    """The order-writer published this version of the order."""
    assert event.status in ("confirmed", "released")
    return Ordered(
        event.purchase_id,
        event.buyer_id,
        event.product_id,
        event.quantity,
        "",
        event.reservation,
        trace_id_in(event.traceparent),
        event.status,
        event.version,
        event.reason,
        event.reservation_no,
        event.unit_price_minor,
        event.currency,
        event.refund,
        event.occurred_at_ms,
    )
