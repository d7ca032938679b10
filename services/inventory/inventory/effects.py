"""The effects that the protocol asks of its shell, which performs them in the order in which they are returned."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from eventlog.reader import Progress
from stampede_schemas.decisions import AnyDecision


class DeadLetter(Struct, frozen=True):
    """A dead letter: the bytes of a request that can never be read."""

    source_offset: int
    index: int
    reason: str
    content: bytes


class InFlightRecord(NamedTuple):
    """A decisions record on its way. `expected` is the only offset at which its landing is good news."""

    source_offset: int
    expected: int
    value: bytes
    decisions: list[AnyDecision]
    appended_at_ms: int
    ends_batch: bool


class LoadTable(NamedTuple):
    """Load the partition, in which `known` was confirmed before, and answer with `loaded(attempt, …)`."""

    attempt: int
    known: Progress


class ReadRequests(NamedTuple):
    """Read `[start, end)` of `requests` and answer with `requests_read(attempt, …)`."""

    attempt: int
    start: int
    end: int


class SendDeadLetters(NamedTuple):
    """Send these dead letters; when all are acknowledged answer with `dead_letters_sent(attempt)`."""

    attempt: int
    dead_letters: list[DeadLetter]


class Produce(NamedTuple):
    """Append these records to `decisions`, in order; answer each with `reported(…)`."""

    records: list[InFlightRecord]


class Acknowledge(NamedTuple):
    """Every request up to and including this offset is answered for good."""

    source_offset: int


class WriteParts(NamedTuple):
    """Append what `pack()` gives to `stock-snapshots`.

    `pack` reads the live table, so nothing is decided until it has run, or the process has forked, and `packed(id)`
    was answered. When all it gave is acknowledged, answer with `parts_written(id, offsets)`.
    """

    id: str
    pack: Callable[[], Iterator[bytes]]


class WriteCommit(NamedTuple):
    """Append this to `stock-snapshots`. Nothing waits for it."""

    value: bytes


class Stop(NamedTuple):
    """End the process with this sentence. `restart_cooldown`: for longer than the session timeout."""

    reason: str
    restart_cooldown: bool = False


Effect = LoadTable | ReadRequests | SendDeadLetters | Produce | Acknowledge | WriteParts | WriteCommit | Stop
