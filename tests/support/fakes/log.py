"""An in-memory Kafka, one partition wide: what `inventory.loading` and `inventory.protocol` need of a broker."""

from collections import defaultdict
from collections.abc import Callable

from eventlog.reader import CountingReader, Progress
from inventory.loading import Ends, Loaded, Query, QueryResult, Record, load
from inventory.table import REJECTED_GENERATION
from stampede_schemas.identifiers import Millis
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS

TOPIC_IDS = {"stampede.requests": "r", "stampede.decisions": "d"}


class MemoryLog:
    """One partition of every topic. Offsets are dense; `first` is where a topic begins after a trim."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Record]] = defaultdict(list)
        self.first: dict[str, int] = defaultdict(int)
        self.requests = self.topics[REQUESTS.name]
        self.decisions = self.topics[DECISIONS.name]
        self.snapshots = self.topics[STOCK_SNAPSHOTS.name]

    def append(self, topic: str, value: bytes | None, at_ms: int = 0) -> int:
        """Append a record and say at which offset it stands."""
        records = self.topics[topic]
        offset = self.first[topic] + len(records)
        records.append(Record(offset, value, Millis(at_ms)))
        return offset

    def trim(self, topic: str, first: int) -> None:
        """Forget the records before `first`."""
        del self.topics[topic][: first - self.first[topic]]
        self.first[topic] = first

    def answer(self, query: Query) -> QueryResult:
        """What a broker would answer a loader now."""
        records, first = self.topics[query.topic], self.first[query.topic]
        if isinstance(query, Ends):
            return first, first + len(records)
        return records[max(query.start - first, 0) : query.end - first]


def run_load(
    log: MemoryLog,
    partition: int = 0,
    topic_ids: dict[str, str] = TOPIC_IDS,
    reader_from: Callable[[Progress], CountingReader] = CountingReader,
    known: Progress | None = None,
    generation: int = REJECTED_GENERATION,
) -> Loaded:
    """Load a partition in one go."""
    loading = load(partition, topic_ids, reader_from, known, generation)
    query = next(loading)
    try:
        while True:
            query = loading.send(log.answer(query))
    except StopIteration as end:
        loaded: Loaded = end.value
        return loaded
