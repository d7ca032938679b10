"""The registry of topics: the only place that knows a topic's name, message types, writer, partitions and policy."""

from dataclasses import dataclass
from types import UnionType

from stampede_schemas.decisions import DecisionsRecord
from stampede_schemas.order_commands import AnyCommand
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import RequestBatch
from stampede_schemas.snapshots import AnySnapshotRecord

PARTITIONS = 12  # the scaling ceiling; it never changes, because product_id → partition must not
MESSAGE_BYTES_MAX = 1_048_576
_MIB = 1_048_576
_FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_SIZE = {"max.message.bytes": str(MESSAGE_BYTES_MAX)}
# Room for the largest record that is kept whole and the headers that say where it stood (see `dead_letters`).
_LETTER_SIZE = {"max.message.bytes": str(2 * MESSAGE_BYTES_MAX)}
_BROKER_CLOCK = {"message.timestamp.type": "LogAppendTime"}
# What we write. The broker packs anything else anew, and refuses what is over the limit then: no record that it took
# inflates to more than 255 times the limit. (Of zstd it can be 30,000 times, and librdkafka never gets past that.)
_CODEC = {"compression.type": "lz4"}


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `config` is applied when it is made and checked at every start of a service."""

    name: str
    message: type | UnionType | None
    writers: tuple[str, ...]
    config: dict[str, str]
    partitions: int = PARTITIONS


REQUESTS = Topic(
    "stampede.requests", RequestBatch, ("gateway", "order-writer"), _FOR_EVER | _BROKER_CLOCK | _SIZE | _CODEC
)
DECISIONS = Topic("stampede.decisions", DecisionsRecord, ("inventory",), _FOR_EVER | _BROKER_CLOCK | _SIZE | _CODEC)
STOCK_SNAPSHOTS = Topic(
    "stampede.stock-snapshots",
    AnySnapshotRecord,
    ("inventory",),
    {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": str(1024 * _MIB),
        "segment.bytes": str(64 * _MIB),
    }
    | _CODEC,
)
ORDER_COMMANDS = Topic(
    "stampede.order-commands", AnyCommand, ("gateway",), {"cleanup.policy": "delete", "retention.ms": "-1"} | _CODEC
)
ORDERS = Topic(
    "stampede.orders", AnyOrderEvent, ("order-writer",), {"cleanup.policy": "delete", "retention.ms": "-1"} | _CODEC
)
DEAD_LETTERS = Topic(
    "stampede.dead-letters",
    None,
    ("inventory", "order-writer"),
    {"cleanup.policy": "delete", "retention.ms": "-1"} | _LETTER_SIZE | _CODEC,
)

TOPICS: tuple[Topic, ...] = (REQUESTS, DECISIONS, STOCK_SNAPSHOTS, ORDER_COMMANDS, ORDERS, DEAD_LETTERS)


def _murmur2(data: bytes) -> int:
    """Murmur2 as Kafka's Java client computes it (32 bits, seed 0x9747b28c)."""
    m, mask, length = 0x5BD1E995, 0xFFFFFFFF, len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def partition_of(key: str, partitions: int = PARTITIONS) -> int:
    """The partition of a product_id (or purchase_id): murmur2 mod N, as Java's default partitioner places it."""
    return (_murmur2(key.encode()) & 0x7FFFFFFF) % partitions
