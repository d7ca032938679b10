"""Who decides what, when: the inventory protocol for one partition, as a state machine without I/O.

It is fed assignments, loaded tables, delivered records, delivery reports and ticks, and answers with what to load,
read, produce and acknowledge. Faust and confluent-kafka are one shell around it (`worker.py`), a simulator is another.
It knows no clock, no randomness and no client library.

The order of the steps is the proof. Decisions are made on a loaded table, produced to stand exactly where the load
ended and onwards; only the delivery report that names the expected offset makes a decision a fact; only facts are
acknowledged. Whoever finds another offset has been overtaken: it stops, lets its own records land, and loads again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

from msgspec import Raw
from msgspec.structs import replace

from eventlog.reader import NO_WRITER, Progress
from inventory.domain import decide, evolve
from inventory.effects import (
    Acknowledge,
    DeadLetter,
    Effect,
    InFlightRecord,
    LoadTable,
    Produce,
    ReadRequests,
    SendDeadLetters,
    Stop,
    WriteCommit,
    WriteParts,
)
from inventory.loading import Loaded, Record
from inventory.table import SLICE_FORM, StockTable, encoded, slices
from stampede_schemas.codec import (
    REQUESTS_PER_RECORD_MAX,
    UnreadableMessage,
    decode_request,
    encode,
    encode_decisions,
    source_crc,
    split_requests,
)
from stampede_schemas.decisions import AnyDecision, Unreadable
from stampede_schemas.identifiers import Millis, Position, WriterEpoch
from stampede_schemas.requests import AnyRequest
from stampede_schemas.snapshots import SnapshotCommitted, SnapshotPart

BATCHES_IN_FLIGHT_MAX = 4
LETTERS_BYTES_MAX = 4 * 1024 * 1024  # of one batch: what is unreadable can be a thousand times what is not
READ_RECORDS_MAX = 500  # of `requests`, in one go, when the stream skipped some
SNAPSHOT_DECISIONS_MIN = 50_000  # since the last snapshot
TAKEOVERS_MAX = 5  # within TAKEOVERS_WINDOW_S; beyond it two owners fight, and this one stays out
TAKEOVERS_WINDOW_S = 30.0

Phase = Literal["idle", "loading", "deciding", "draining", "stopped"]


Rules = Callable[[StockTable, AnyRequest, Millis], AnyDecision]
SnapshotDue = Callable[[int, int], bool]


def snapshot_due(decided: int, remembered: int, decided_min: int = SNAPSHOT_DECISIONS_MIN) -> bool:
    """Whether so many decisions since the last snapshot make one of so many things worth its writing.

    The last one held `remembered - decided` or more: a table that only grows must not be compared with itself.
    """
    return decided > decided_min and decided >= remembered - decided


class PartitionProcessor:
    """The protocol for one partition of one worker. All methods return what is to be done, in order."""

    def __init__(
        self,
        number: int,
        topic_ids: dict[str, str],
        new_epoch: Callable[[], WriterEpoch],
        rules: Rules = decide,
        snapshot_due: SnapshotDue = snapshot_due,
    ) -> None:
        self.number = number
        self.phase: Phase = "idle"
        self.table = StockTable(number)
        self.confirmed = Progress()
        self._topic_ids = topic_ids
        self._new_epoch = new_epoch
        self._rules = rules
        self._due = snapshot_due
        self._owned = False
        self._attempt = 0
        self._writer_epoch = NO_WRITER
        self._fencing_offset = 0
        self._next_source = 0  # the next request to decide
        self._next_decision = 0  # where the next decisions record must land
        self._waiting: deque[Record] = deque()  # delivered, not decided
        self._highest = -1  # highest request offset ever delivered under this assignment
        self._in_flight: deque[InFlightRecord] = deque()
        self._batches = 0
        self._held_back: list[InFlightRecord] | None = None
        self._reading = False
        self._quiet_since: int | None = None
        self._answered_at_tick = -1
        self._takeovers: deque[float] = deque()
        self._taken_over = False
        self._decided = 0  # requests, since the last snapshot
        self._snapshot: SnapshotCommitted | None = None
        self._packing = False  # the table must stand still

    @property
    def backlog(self) -> int:
        """Delivered records that wait to be decided."""
        return len(self._waiting)

    @property
    def drained(self) -> bool:
        """Whether the table is exactly what is confirmed, so that it may be shown or written down."""
        return self.phase == "deciding" and not self._in_flight and self._held_back is None

    # ---- assignment and loading

    def assigned(self) -> list[Effect]:
        """The group gave us the partition (again). The knowledge of the stream is void."""
        if self.phase == "stopped":
            return []
        self._owned = True
        self._taken_over = False
        self._forget_stream()
        return self._load_when_drained()

    def revoked(self) -> list[Effect]:
        """The group took the partition away."""
        if self.phase == "stopped":
            return []
        self._owned = False
        self._forget_stream()
        self.phase = "idle"
        self._attempt += 1
        return []

    def loaded(self, attempt: int, loaded: Loaded, now_s: float) -> list[Effect]:
        """A load ended. One that was begun before the last assignment is dropped."""
        if attempt != self._attempt or self.phase != "loading":
            return []
        if self._taken_over and self._too_many_takeovers(now_s):
            return self._stop(f"partition {self.number}: another worker keeps deciding it", restart_cooldown=True)
        self.phase, self._taken_over = "deciding", False
        self.table, self.confirmed, self._fencing_offset = loaded.table, loaded.progress, loaded.fencing_offset
        self._writer_epoch = self._new_epoch()
        self._next_source = loaded.progress.source_offset + 1
        self._next_decision = loaded.fencing_offset
        self._decided = loaded.refolded
        self._snapshot, self._packing = None, False
        self._quiet_since = None
        effects: list[Effect] = []
        if self.confirmed.source_offset >= 0:
            effects.append(Acknowledge(self.confirmed.source_offset))
        elif not loaded.known_topics:
            # An empty snapshot at birth: should a topic be recreated while nobody runs, its successor is found out.
            empty = SnapshotCommitted(
                "birth", -1, loaded.fencing_offset, NO_WRITER, -1, [], self._topic_ids, SLICE_FORM
            )
            effects.append(WriteCommit(encode(empty)))
        return effects + self._advance()

    def _forget_stream(self) -> None:
        self._waiting.clear()
        self._highest = -1

    def _load_when_drained(self) -> list[Effect]:
        """Own records still in flight must land first: a load that missed them would not be the end of the log."""
        self._attempt += 1
        self._reading = False
        self._held_back = None
        if self._in_flight:
            self.phase = "draining"
            return []
        self.phase = "loading"
        return [LoadTable(self._attempt, self.confirmed)]

    def _too_many_takeovers(self, now_s: float) -> bool:
        self._takeovers.append(now_s)
        while now_s - self._takeovers[0] > TAKEOVERS_WINDOW_S:
            self._takeovers.popleft()
        return len(self._takeovers) > TAKEOVERS_MAX

    # ---- requests

    def delivered(self, record: Record) -> list[Effect]:
        """The stream delivered a request record."""
        if not self._owned or self.phase == "stopped":
            return []
        self._quiet_since = None
        self._highest = max(self._highest, record.offset)
        if record.offset <= self.confirmed.source_offset:
            return [Acknowledge(record.offset)]
        if not self._waiting or record.offset > self._waiting[-1].offset:
            self._waiting.append(record)
        return self._advance()

    def requests_read(self, attempt: int, records: Sequence[Record]) -> list[Effect]:
        """The records that the stream had skipped, or that have to be decided once more."""
        if attempt != self._attempt or self.phase != "deciding":
            return []
        self._reading = False
        read = [record for record in records if record.offset >= self._next_source]
        if records and not read:
            return self._advance()  # the stream delivered them meanwhile after all
        if not read or read[0].offset != self._next_source:
            return self._stop(
                f"requests/{self.number} no longer holds offset {self._next_source}, which has no decision"
            )
        self._highest = max(self._highest, read[-1].offset)
        self._waiting = deque(read + [record for record in self._waiting if record.offset > read[-1].offset])
        return self._advance()

    def dead_letters_sent(self, attempt: int) -> list[Effect]:
        """The dead letters of the held batch are durable: now its decisions may be."""
        if attempt != self._attempt or self._held_back is None:
            return []
        records, self._held_back = self._held_back, None
        return [self._produce(records), *self._advance()]

    def tick(self, requests_first: int, requests_end: int) -> list[Effect]:
        """Once a second, with the first and end offset of `requests`: was the last record skipped by the stream?

        The ends must have been asked for after the last tick; what was confirmed since may lie beyond them.
        """
        answered, self._answered_at_tick = self._answered_at_tick, self.confirmed.source_offset
        if self.phase != "deciding":
            return []
        if requests_end <= answered or requests_first > self._next_source:
            return self._stop(
                f"requests/{self.number} holds [{requests_first}, {requests_end}) but {answered} is answered "
                f"and {self._next_source} is the next one: a part of it is gone"
            )
        if self._waiting or self._in_flight or self._reading or requests_end <= self._next_source:
            self._quiet_since = None
            return []
        if self._quiet_since != self._next_source:
            self._quiet_since = self._next_source
            return []
        return self._read(requests_end)

    def _advance(self) -> list[Effect]:
        """Decide as long as the pipeline has room. Batches form by themselves while earlier ones are in flight."""
        effects: list[Effect] = []
        while self.phase == "deciding" and self._held_back is None and self._batches < BATCHES_IN_FLIGHT_MAX:
            if self._packing:
                break
            if self._snapshot_due():
                if not self._in_flight:
                    effects.append(self._begin_snapshot())
                break
            while self._waiting and self._waiting[0].offset < self._next_source:
                self._waiting.popleft()
            wanted = self._waiting[0].offset if self._waiting else self._highest + 1
            if self._next_source < wanted:
                effects += self._read(wanted)
                break
            if not self._waiting:
                break
            effects += self._decide_batch()
        return effects

    def _read(self, end: int) -> list[Effect]:
        if self._reading:
            return []
        self._reading = True
        return [ReadRequests(self._attempt, self._next_source, min(end, self._next_source + READ_RECORDS_MAX))]

    def _decide_batch(self) -> list[Effect]:
        records: list[InFlightRecord] = []
        dead_letters: list[DeadLetter] = []
        count = 0
        while self._waiting and self._waiting[0].offset == self._next_source:
            record = self._waiting[0]
            requests = _split(record)
            size = 1 if isinstance(requests, UnreadableMessage) else len(requests)
            if records and count + size > REQUESTS_PER_RECORD_MAX:
                break
            if dead_letters and sum(len(letter.content) for letter in dead_letters) > LETTERS_BYTES_MAX:
                break
            self._waiting.popleft()
            count += size
            decisions = self._answer(record, requests, dead_letters)
            crc = source_crc(record.value)
            value = encode_decisions(
                record.offset, crc, self._writer_epoch, self._fencing_offset, record.appended_at_ms, decisions
            )
            records.append(
                InFlightRecord(
                    record.offset, self._next_decision, value, decisions, record.appended_at_ms, ends_batch=False
                )
            )
            self._next_source += 1
            self._next_decision += 1
        records[-1] = records[-1]._replace(ends_batch=True)
        self._decided += count
        if dead_letters:
            # A letter must be durable before the decision that calls it one, or a crash between loses the bytes.
            self._held_back = records
            return [SendDeadLetters(self._attempt, dead_letters)]
        return [self._produce(records)]

    def _answer(
        self, record: Record, requests: list[Raw] | UnreadableMessage, dead_letters: list[DeadLetter]
    ) -> list[AnyDecision]:
        if isinstance(requests, UnreadableMessage):
            dead_letters.append(DeadLetter(record.offset, 0, requests.reason, record.value or b""))
            return [Unreadable(reason=requests.reason)]
        decisions: list[AnyDecision] = []
        for index, raw in enumerate(requests):
            try:
                decision = self._rules(self.table, decode_request(raw), record.appended_at_ms)
            except UnreadableMessage as unreadable:
                decision = Unreadable(reason=unreadable.reason)
            if isinstance(decision, Unreadable):
                dead_letters.append(DeadLetter(record.offset, index, decision.reason, bytes(raw)))
            evolve(self.table, decision, Position(self.number, record.offset, index))
            decisions.append(decision)
        return decisions

    def _produce(self, records: list[InFlightRecord]) -> Produce:
        self._in_flight.extend(records)
        self._batches += 1
        return Produce(records)

    # ---- delivery reports

    def reported(self, source_offset: int, acknowledged_offset: int | None, error: str | None = None) -> list[Effect]:
        """The delivery report of the oldest record: the offset it landed at, or why nobody knows."""
        if self.phase == "stopped":
            return []
        if error is not None or acknowledged_offset is None:
            return self._stop(f"decisions/{self.number}: the fate of a record is unknown ({error})")
        record = self._in_flight.popleft()
        assert record.source_offset == source_offset, "delivery reports of a partition come in order"
        self._batches -= record.ends_batch
        if self.phase == "deciding":
            if acknowledged_offset == record.expected:
                self.confirmed = Progress(
                    acknowledged_offset + 1, record.source_offset, self._writer_epoch, acknowledged_offset
                )
                return [Acknowledge(record.source_offset), *self._advance()]
            self._taken_over = True
            return self._load_when_drained()
        if self.phase == "draining" and not self._in_flight:
            return self._load_when_drained()
        return []

    def _stop(self, reason: str, *, restart_cooldown: bool = False) -> list[Effect]:
        self.phase = "stopped"
        return [Stop(reason, restart_cooldown)]

    # ---- snapshots

    def _snapshot_due(self) -> bool:
        return self._snapshot is None and self._due(self._decided, self.table.size())

    def _begin_snapshot(self) -> WriteParts:
        """Pack the whole table at a moment when all of it is confirmed. It names the last *counting* record's load."""
        at = self.confirmed
        name = f"{at.source_offset}-{at.load}"
        self._decided = 0
        self._packing = True
        self._snapshot = SnapshotCommitted(
            name, at.source_offset, at.next_offset, at.load, at.anchor, [], self._topic_ids, SLICE_FORM
        )
        return WriteParts(name, partial(_pack, name, self.table))

    def packed(self, name: str) -> list[Effect]:
        """The table of that snapshot is read, or held by a fork: deciding goes on."""
        if self._snapshot is None or self._snapshot.id != name:
            return []
        self._packing = False
        return self._advance()

    def parts_written(self, name: str, offsets: list[int] | None) -> list[Effect]:
        """All parts are durable (None: that failed, which costs a refold): the commit record makes them a snapshot."""
        snapshot = self._snapshot
        if snapshot is None or snapshot.id != name:
            return []
        self._snapshot = None
        return [] if offsets is None else [WriteCommit(encode(replace(snapshot, parts=offsets)))]


def _pack(name: str, table: StockTable) -> Iterator[bytes]:
    for index, value in enumerate(value for piece in slices(table) for value in encoded(piece)):
        yield encode(SnapshotPart(name, index, Raw(value)))


def _split(record: Record) -> list[Raw] | UnreadableMessage:
    try:
        return split_requests(record.value)
    except UnreadableMessage as unreadable:
        return unreadable
