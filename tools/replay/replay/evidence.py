"""What the rules look at: the records of a sale, and, where there are any, rows, states and what buyers were told.

Data and its plain readings (which records count, which request stands where); it judges nothing and fetches nothing.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from replay.contract import REJECTED_GENERATION, Answer, LogPosition, OrderEvent, read_answers, read_envelope, split
from replay.journal import Journal, Limits

SETTLE_MS = 30_000  # after this long without a fault, nothing may be on its way any more


class Violation(NamedTuple):
    """What is wrong, and the first place that shows it, as topic/partition/offset[/index] or table/key."""

    at: str
    what: str


Findings = Generator[Violation, None, int]  # a rule yields what is wrong and returns how many things it looked at


class Record(NamedTuple):
    """One Kafka record; `value` None is a tombstone, `at_ms` the broker's clock."""

    offset: int
    at_ms: int
    value: bytes | None


class Letter(NamedTuple):
    """A dead letter: where it lies, where its bytes stood (`topic/partition/offset[/index]`), and why it was buried."""

    partition: int
    offset: int
    at_ms: int
    source: str
    reason: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()  # of the letter itself, while it is in a topic

    @property
    def cut(self) -> tuple[int, str] | None:
        """Size and SHA-256 of the bytes whose beginning this is; None if it says that it is whole."""
        said = dict(self.headers)
        return (int(said["size"]), said["sha256"].decode()) if {"size", "sha256"} <= said.keys() else None


class CommandRecord(NamedTuple):
    """A record of `order-commands`, and where it stands."""

    partition: int
    offset: int
    at_ms: int
    value: bytes


class Counted(NamedTuple):
    """A counting decisions record. `answers` is None when it holds something that no version known here wrote."""

    offset: int
    at_ms: int
    source_offset: int
    crc: int
    load: str
    start: int
    appended_at_ms: int
    answers: list[Answer] | None


class Row(NamedTuple):
    """A row of `purchases`; instants in milliseconds."""

    purchase_id: str
    buyer_id: str
    product_id: str
    quantity: int
    status: str
    reason: str | None
    reservation_no: int | None
    unit_price_minor: int | None
    currency: str | None
    payment_method: str
    fingerprint: str
    place: LogPosition
    hold_until_ms: int | None
    returned: bool
    version: int
    created_at_ms: int
    updated_at_ms: int


class Payment(NamedTuple):
    """A line of the payment provider's books: money `captured` or `refunded`, or a purchase `voided`."""

    line: int
    at_ms: int
    event: str
    purchase_id: str
    amount_minor: int
    currency: str


class Applied(NamedTuple):
    """A row of `progress`: how far the order-writer has applied a partition of `decisions`."""

    next_offset: int
    source_offset: int
    load: str
    anchor: int


class Catalogued(NamedTuple):
    """A row of `products`."""

    stock: int
    available: int
    partition: int


@dataclass(frozen=True, slots=True)
class Database:
    """Postgres, seen in one transaction. `now_ms` is its own clock."""

    now_ms: int
    rows: dict[str, Row]
    products: dict[str, Catalogued]
    applied: dict[int, Applied]

    def knows(self, partition: int, record: Counted, settle_ms: int) -> bool:
        """Whether what this record says has been applied, or had the time to be."""
        applied = self.applied.get(partition)
        if applied is not None and record.source_offset <= applied.source_offset:
            return True
        return record.at_ms < self.now_ms - settle_ms


class State(NamedTuple):
    """What an inventory worker said of a partition: digest of its table after `source_offset`."""

    partition: int
    source_offset: int
    sha256: str


@dataclass
class Partition:
    """One partition of `requests` and `decisions`, in order of offsets."""

    number: int
    requests: list[Record] = field(default_factory=list)
    decisions: list[Record] = field(default_factory=list)

    @cached_property
    def line(self) -> tuple[list[Counted], list[int]]:
        """The counting records, and the offsets of the void ones.

        A record counts if it answers the next request, and its load either is that of the last counting record or
        ended reading exactly where the record stands. Everything else changes nothing.
        """
        counting: list[Counted] = []
        void: list[int] = []
        source, load = -1, ""
        for record in self.decisions:
            found = read_envelope(record.value)
            if (
                found is None
                or found.source_offset != source + 1
                or not (record.offset == found.start or (load and found.load == load))
            ):
                void.append(record.offset)
                continue
            source, load = found.source_offset, found.load
            counting.append(
                Counted(
                    record.offset, record.at_ms, source, found.source_crc, load, found.start, found.appended_at_ms,
                    read_answers(found.decisions),
                )
            )  # fmt: skip
        return counting, void

    @property
    def counting(self) -> list[Counted]:
        """The one history of this partition."""
        return self.line[0]

    @property
    def void(self) -> list[int]:
        """Offsets of the records that change nothing."""
        return self.line[1]

    @cached_property
    def asked(self) -> dict[int, Record]:
        """The request records by offset."""
        return {record.offset: record for record in self.requests}

    def answers(self) -> Iterator[tuple[LogPosition, Answer]]:
        """Every decision with the place of its request, in order."""
        for record in self.counting:
            for index, answer in enumerate(record.answers or ()):
                yield (self.number, record.source_offset, index), answer


class Canaries(NamedTuple):
    """Words that must be nowhere, each in all the forms it could be written in; `texts` are files to look in too."""

    words: list[tuple[bytes, ...]]
    texts: list[tuple[str, bytes]]


@dataclass
class Evidence:
    """Everything there is to judge a sale by. What is None was not there to be looked at.

    `at_rest`: nothing was on its way any more when it was taken, and the journal's driver acted alone; what is not done
    by then is lost.
    `generation` is how many rejections a partition remembers at least; another number than that is for tests.
    """

    partitions: dict[int, Partition]
    taken_at_ms: int
    origin: str
    letters: list[Letter] | None = None
    orders: list[OrderEvent] | None = None
    database: Database | None = None
    states: list[State] | None = None
    journal: Journal | None = None
    canaries: Canaries | None = None
    payments: list[Payment] | None = None
    generation: int = REJECTED_GENERATION
    at_rest: bool = False
    commands: list[CommandRecord] | None = None  # of every partition, in order of offsets

    @property
    def limits(self) -> Limits | None:
        """What the journal says of the limits it was under."""
        return self.journal.limits if self.journal else None

    @property
    def settle_ms(self) -> int:
        """How long something may still be on its way."""
        return 0 if self.at_rest else SETTLE_MS

    def has(self, need: str) -> bool:
        """Whether this part (a field's name) is there."""
        return getattr(self, need) is not None

    def answers(self) -> Iterator[tuple[LogPosition, Answer]]:
        """Every decision of every partition."""
        for partition in self.partitions.values():
            yield from partition.answers()

    @cached_property
    def reserved(self) -> dict[LogPosition, Answer]:
        """Every reservation ever made."""
        return {place: answer for place, answer in self.answers() if answer.type == "Reserved"}

    @cached_property
    def released(self) -> dict[LogPosition, LogPosition]:
        """Where each reservation that came back was first released, by its place."""
        found: dict[LogPosition, LogPosition] = {}
        for place, answer in self.answers():
            if answer.type == "Released" and answer.reservation is not None:
                found.setdefault(answer.reservation, place)
        return found

    @cached_property
    def undone(self) -> set[LogPosition]:
        """Reservations that never counted: in old logs the second one of a purchase was given back as such."""
        given_back = (answer for _, answer in self.answers() if answer.reason == "already_decided")
        return {answer.reservation for answer in given_back if answer.reservation is not None}

    def forgot(self, purchase_id: str) -> bool:
        """Whether more was rejected than is remembered between the purchase's last rejection and its reservation."""
        for partition in self.partitions.values():
            since: int | None = None
            for _, answer in partition.answers():
                if answer.type == "Rejected":
                    mine = answer.purchase_id == purchase_id
                    since = 0 if mine else None if since is None else since + 1
                elif answer.type == "Reserved" and answer.purchase_id == purchase_id and since is not None:
                    return since > self.generation
        return False

    @cached_property
    def retired(self) -> dict[str, LogPosition]:
        """Products that were closed for good, and where: their reservations are forgotten from there on."""
        return {answer.product_id: place for place, answer in self.answers() if answer.type == "ProductRetired"}

    def requested(self) -> int:
        """How many requests there are."""
        records = (record for partition in self.partitions.values() for record in partition.requests)
        return sum(1 if isinstance(requests := split(record.value), str) else len(requests) for record in records)


def asked_at(place: LogPosition) -> str:
    """A request's place, as dead letters name it."""
    return f"requests/{place[0]}/{place[1]}/{place[2]}"


def decided_at(partition: int, offset: int) -> str:
    """A decisions record's place."""
    return f"decisions/{partition}/{offset}"
