"""Which records of a `decisions` partition count. Pure: fed records in order, it says what each one is.

A record counts iff

    source_offset == last counting source_offset + 1
    and (load == load of the last counting record  or  its own offset == start)

Everything else is void, for every reader, for ever. This is a compare-and-swap on the end of a log, done by its
readers: a writer takes over only by landing exactly where it stopped reading. All services and tools share this code.
"""

from typing import Literal, NamedTuple

from msgspec import Struct

from stampede_schemas.codec import decode_envelope
from stampede_schemas.decisions import Envelope
from stampede_schemas.identifiers import WriterEpoch

NO_WRITER = WriterEpoch("")


class Progress(Struct, frozen=True):
    """How far one partition of `decisions` was read; saved together with whatever was made of it.

    `next_offset` is where to read on; `source_offset`, `load` and `anchor` (its own offset) belong to the last
    counting record, and are -1, "" and -1 while there is none.
    """

    next_offset: int = 0
    source_offset: int = -1
    load: WriterEpoch = NO_WRITER
    anchor: int = -1


class Fenced(NamedTuple):
    """A record that changes nothing. `gap`: of the current writer, but ahead: one before it was lost on its way."""

    reason: Literal["unreadable", "repeated", "foreign", "gap"]


class LogBroken(Exception):
    """The log is not what it was: a gap, a lost tail, another topic. The reader must stop and say so."""


class CountingReader:
    """Reads one partition of `decisions` in order. Holds nothing but its `progress`."""

    __slots__ = ("progress",)

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()

    def read(self, offset: int, value: bytes | None) -> Envelope | Fenced:
        """Say what the record at `offset` is, and step over it.

        Raises:
            LogBroken: `offset` is not the next one. Offsets of `decisions` are dense: nothing trims or compacts it.
        """
        last = self.progress
        if offset != last.next_offset:
            raise LogBroken(f"decisions jumps from offset {last.next_offset} to {offset}: part of the log is gone")
        envelope = decode_envelope(value)
        fenced = self._fenced(offset, envelope)
        if fenced is not None or envelope is None:
            self.progress = Progress(offset + 1, last.source_offset, last.load, last.anchor)
            return fenced or Fenced("unreadable")
        self.progress = Progress(offset + 1, envelope.source_offset, envelope.load, offset)
        return envelope

    def _fenced(self, offset: int, envelope: Envelope | None) -> Fenced | None:
        if envelope is None:
            return Fenced("unreadable")
        last = self.progress
        if envelope.source_offset <= last.source_offset:
            return Fenced("repeated")
        same_load = envelope.load == last.load != NO_WRITER
        if envelope.source_offset != last.source_offset + 1:
            return Fenced("gap" if same_load else "foreign")
        return None if same_load or offset == envelope.start else Fenced("foreign")


def check_anchor(progress: Progress, value: bytes | None, crc: int | None = None) -> None:
    """Compare the record found at `progress.anchor` with what was remembered of it.

    Args:
        progress: of the last run; its `anchor` is not -1.
        value: the record that stands at the anchor now.
        crc: the CRC-32 of the `requests` record at `progress.source_offset`, where the caller reads requests too.

    Raises:
        LogBroken: another record stands there, so a log lost its tail (power loss, restored disk) or was replaced.
    """
    envelope = decode_envelope(value)
    if (
        envelope is None
        or envelope.source_offset != progress.source_offset
        or envelope.load != progress.load
        or (crc is not None and envelope.source_crc != crc)
    ):
        raise LogBroken(
            f"the decisions record at offset {progress.anchor} is not the one remembered "
            f"(answer to request {progress.source_offset}): the log lost its tail or was replaced"
        )
