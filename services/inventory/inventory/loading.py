"""How a partition's table is made: newest snapshot, then the decisions after it, up to the end of the log.

Written without I/O, as a generator that asks (`Ends`, `Range`) and is answered. Confluent-kafka answers in a worker,
an in-memory log in the simulator. It never writes, so it may be dropped at any point.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import DecodeError

from eventlog.reader import CountingReader, Fenced, LogBroken, Progress, check_anchor
from inventory.domain import evolve
from inventory.table import REJECTED_GENERATION, SLICE_FORM, Slice, StockTable, decode_slice, join
from stampede_schemas.codec import decode_decisions, decode_snapshot, source_crc
from stampede_schemas.decisions import AnyDecision, Envelope
from stampede_schemas.identifiers import Millis, Position
from stampede_schemas.snapshots import SnapshotCommitted, SnapshotPart
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS

SNAPSHOT_SEARCH_STEP = 200  # records read at a time while walking back to the newest snapshot


class SnapshotsUnreadable(Exception):
    """`stock-snapshots` cannot be read now: thrown into a load, which then folds the whole log instead."""


class Record(NamedTuple):
    """A record as any log gives it: value None is a tombstone."""

    offset: int
    value: bytes | None
    appended_at_ms: Millis


class Ends(NamedTuple):
    """Ask: first offset and the one after the last, of this partition of `topic`. Answered with `tuple[int, int]`."""

    topic: str


class Range(NamedTuple):
    """Ask: the records of `[start, end)` of this partition of `topic`. Answered with an iterable of `Record`."""

    topic: str
    start: int
    end: int


Query = Ends | Range
QueryResult = tuple[int, int] | Iterable[Record]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A table that is the fold of every counting record before `start`, where `decisions` ended."""

    table: StockTable
    progress: Progress
    fencing_offset: int
    snapshot_at: int  # source offset of the snapshot it began with, -1 without one
    refolded: int = 0  # decisions folded on top of it
    known_topics: bool = True  # some snapshot names the topics; else the first one must be written now


Loading = Generator[Query, QueryResult, Loaded]


def load(
    partition: int,
    topic_ids: dict[str, str],
    reader_from: Callable[[Progress], CountingReader] = CountingReader,
    known: Progress | None = None,
    generation: int = REJECTED_GENERATION,
) -> Loading:
    """Load one partition.

    Args:
        partition: its number.
        topic_ids: Kafka's ids of the topics as they are now; a snapshot that names others stops the load.
        reader_from: makes the reader of counting records; tests give a broken one to see it caught.
        known: what this process saw confirmed before; the log must still hold it.
        generation: rejections remembered in one generation; tests take a smaller one.

    Raises:
        LogBroken: the log lost a part, or a decision does not fit. Nobody may decide on half a history.
    """
    try:
        snapshot = yield from _newest_snapshot(topic_ids)
        known_topics = snapshot is not None
    except SnapshotsUnreadable:
        snapshot, known_topics = None, True  # nothing is said of the topics: others may be named there
    progress, pieces = Progress(), list[Slice]()
    if snapshot is not None:
        at, pieces = snapshot
        progress = Progress(at.next_offset, at.source_offset, at.load, at.anchor)
    table = join(partition, iter(pieces), generation)
    for seen in (progress, known or Progress()):
        yield from _check_decisions(seen)
    if snapshot is None and (yield from _ends(DECISIONS.name))[0] > 0:
        raise LogBroken("decisions lost its head and there is no snapshot: its history cannot be rebuilt")
    reader, refolded = reader_from(progress), 0
    while True:
        _, end = yield from _ends(DECISIONS.name)
        begin = reader.progress.next_offset
        if begin >= end:
            break
        for record in (yield from _range(DECISIONS.name, begin, end)):
            folded = fold(table, reader, record)
            refolded += 0 if isinstance(folded, Fenced) else len(folded.decisions)
        if reader.progress.next_offset == begin:
            raise LogBroken(f"decisions ends at {end} but gives nothing from {begin} on: a part of the log is gone")
    yield from _check_requests(reader.progress)
    start = reader.progress.next_offset
    return Loaded(table, reader.progress, start, progress.source_offset, refolded, known_topics)


class Folded(NamedTuple):
    """A counting record: its envelope and the decisions that were applied."""

    envelope: Envelope
    decisions: list[AnyDecision]


def fold(table: StockTable, reader: CountingReader, record: Record) -> Folded | Fenced:
    """Apply one `decisions` record to the table if it counts.

    Raises:
        LogBroken: it counts but cannot be read: skipping it would fork the readers.
    """
    found = reader.read(record.offset, record.value)
    if isinstance(found, Fenced):
        return found
    try:
        decisions = decode_decisions(found)
    except DecodeError as error:
        raise LogBroken(
            f"decisions/{table.partition} offset {record.offset} counts but cannot be read ({error}): "
            "a newer version wrote it; upgrade this reader before its writer"
        ) from error
    for index, decision in enumerate(decisions):
        evolve(table, decision, Position(table.partition, found.source_offset, index))
    return Folded(found, decisions)


def _ends(topic: str) -> Generator[Query, QueryResult, tuple[int, int]]:
    answer = yield Ends(topic)
    assert isinstance(answer, tuple)
    return answer


def _range(topic: str, start: int, end: int) -> Generator[Query, QueryResult, Iterable[Record]]:
    answer = yield Range(topic, start, end)
    assert not isinstance(answer, tuple)
    return answer


def _check_decisions(progress: Progress) -> Generator[Query, QueryResult, None]:
    """Records that were read before are still there."""
    _, end = yield from _ends(DECISIONS.name)
    if progress.next_offset > end:
        raise LogBroken(f"decisions ends at {end} but was read up to {progress.next_offset} before: it lost its tail")
    if progress.anchor >= 0:
        records = list((yield from _range(DECISIONS.name, progress.anchor, progress.anchor + 1)))
        check_anchor(progress, records[0].value if records else None)


def _check_requests(progress: Progress) -> Generator[Query, QueryResult, None]:
    """The answered requests exist, and the last one is the very record that was answered."""
    first, end = yield from _ends(REQUESTS.name)
    if end <= progress.source_offset:
        raise LogBroken(f"requests ends at {end} but offset {progress.source_offset} was answered: it lost its tail")
    if first > progress.source_offset + 1:
        raise LogBroken(
            f"requests begins at {first} but {progress.source_offset + 1} is not answered yet: it lost its head"
        )
    if progress.anchor < 0:
        return
    answers = list((yield from _range(DECISIONS.name, progress.anchor, progress.anchor + 1)))
    asked = list((yield from _range(REQUESTS.name, progress.source_offset, progress.source_offset + 1)))
    crc = source_crc(asked[0].value) if asked else -1
    check_anchor(progress, answers[0].value if answers else None, crc)


def _newest_snapshot(
    topic_ids: dict[str, str],
) -> Generator[Query, QueryResult, tuple[SnapshotCommitted, list[Slice]] | None]:
    """Walk back from the end to the newest commit record whose parts are all there, in the present form."""
    first, end = yield from _ends(STOCK_SNAPSHOTS.name)
    below = end
    while below > first:
        above = max(first, below - SNAPSHOT_SEARCH_STEP)
        records = list((yield from _range(STOCK_SNAPSHOTS.name, above, below)))
        for record in reversed(records):
            committed = _snapshot_record(record)
            if isinstance(committed, SnapshotCommitted):
                _check_topics(committed, topic_ids)
                pieces = (yield from _parts(committed, first)) if committed.form == SLICE_FORM else None
                if pieces is not None:
                    return committed, pieces
        below = above
    return None


def _check_topics(committed: SnapshotCommitted, topic_ids: dict[str, str]) -> None:
    for name, topic_id in committed.topic_ids.items():
        if topic_ids.get(name) != topic_id:
            raise LogBroken(
                f"topic {name} was deleted and recreated: the history it held is gone. Restore it from a backup, "
                "or remove all topics to begin anew"
            )


def _snapshot_record(record: Record) -> SnapshotCommitted | SnapshotPart | None:
    try:
        return decode_snapshot(record.value or b"")
    except DecodeError:
        return None  # an optimisation that cannot be read costs a refold, nothing else


def _parts(committed: SnapshotCommitted, first: int) -> Generator[Query, QueryResult, list[Slice] | None]:
    wanted = set(committed.parts)
    if not wanted:
        return []
    if min(wanted) < first:
        return None
    pieces = []
    for record in (yield from _range(STOCK_SNAPSHOTS.name, min(wanted), max(wanted) + 1)):
        part = _snapshot_record(record) if record.offset in wanted else None
        if isinstance(part, SnapshotPart) and part.id == committed.id:
            try:
                pieces.append(decode_slice(part.content))
            except DecodeError:
                return None  # another version wrote it
    return pieces if len(pieces) == len(wanted) else None
