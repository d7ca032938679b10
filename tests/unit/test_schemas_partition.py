"""Where a key lives must be what Kafka's Java client says: tools outside find a product's partition by it."""

import pytest

from stampede_schemas.topics import PARTITIONS, partition_of

# The hashes Kafka's own test of its murmur2 expects, as signed 32-bit numbers.
JAVA = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), JAVA.items())
def test_the_hash_is_javas(key: str, signed: int) -> None:
    """With 2^31 partitions the partition is the whole positive hash, so all of its bits are compared."""
    assert partition_of(key, 2**31) == signed & 0x7FFFFFFF
    assert partition_of(key) == (signed & 0x7FFFFFFF) % PARTITIONS


def test_products_spread_over_all_partitions() -> None:
    """Ordinary ids fall on every partition, none with more than twice its share."""
    counts = [0] * PARTITIONS
    for number in range(1_200):
        counts[partition_of(f"product-{number}")] += 1
    assert min(counts) > 0
    assert max(counts) <= 200
