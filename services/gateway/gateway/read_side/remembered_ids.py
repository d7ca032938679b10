"""The ids of purchases that a gateway must never deny, in a few bytes each: all that ever held units, and the
rejections that the fold still remembers. Pure.

Full records are bounded and forgotten; these are not. A Bloom filter may claim an id that it was never given: then a
row is asked for in vain. It never misses one that it was given.
"""

from stampede_schemas.identifiers import PurchaseId

# Per partition. The inventory's fold remembers two generations of as many; three are kept here, since a generation
# begins here with this process, and there with the log.
REJECTED_GENERATION_MAX = 250_000
GENERATIONS = 3
HELD_MAX = 1_000_000  # of the first filter; each following one holds twice as many
_BITS_PER_ID = 24  # with three probes at most 0.16 % of the ids that were never added
_PROBES = 3


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
    """Fed with every decision, and at the start with what Postgres holds."""

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
