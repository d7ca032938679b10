"""Which records count: the compare-and-swap on the end of the log, done by its readers."""

import pytest

from eventlog.reader import CountingReader, Fenced, LogBroken, Progress, check_anchor
from stampede_schemas.codec import encode_decisions
from stampede_schemas.identifiers import Millis, WriterEpoch


def record(source: int, load: str, start: int, crc: int = 7) -> bytes:
    """A decisions record without decisions."""
    return encode_decisions(source, crc, WriterEpoch(load), start, Millis(0), [])


def read(*values: bytes | None, progress: Progress | None = None) -> list[str]:
    """What a reader says of these records, from its progress on."""
    reader = CountingReader(progress)
    said: list[str] = []
    for offset, value in enumerate(values, reader.progress.next_offset):
        found = reader.read(offset, value)
        said.append(found.reason if isinstance(found, Fenced) else "counts")
    return said


def test_a_chain_of_one_load_counts() -> None:
    """From the place where the load ended, one after the other."""
    assert read(record(0, "a", 0), record(1, "a", 0), record(2, "a", 0)) == ["counts"] * 3


def test_a_takeover_counts_only_where_its_load_ended() -> None:
    """One record later it is void, and its whole chain with it."""
    chain = [record(0, "a", 0), record(1, "a", 0)]
    assert read(*chain, record(2, "b", 2), record(3, "b", 2)) == ["counts"] * 4
    assert read(*chain, record(2, "b", 1), record(3, "b", 1)) == ["counts", "counts", "foreign", "foreign"]


def test_a_zombie_is_void_after_a_takeover() -> None:
    """Its late records repeat, or are foreign; its successor goes on between them."""
    assert read(
        record(0, "a", 0), record(1, "b", 1), record(1, "a", 0), record(2, "a", 0), record(2, "b", 1)
    ) == ["counts", "counts", "repeated", "foreign", "counts"]  # fmt: skip


def test_a_record_behind_a_lost_one_is_a_jump() -> None:
    """Fenced like any other: it was decided on a state that nobody has."""
    assert read(record(0, "a", 0), record(2, "a", 0), record(1, "a", 0)) == ["counts", "gap", "counts"]


def test_the_first_record_answers_the_first_request() -> None:
    """Anything else at the beginning is void."""
    assert read(record(1, "a", 0), record(0, "b", 0), record(0, "c", 2)) == ["foreign", "foreign", "counts"]


def test_no_load_is_no_chain() -> None:
    """Records without a load count where their load ended and nowhere else."""
    assert read(record(0, "", 0), record(1, "", 0)) == ["counts", "foreign"]


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[]", b'{"source_offset":0}', b'{"source_offset":"0"}'])
def test_an_unreadable_envelope_is_void(value: bytes | None) -> None:
    """Tombstones and foreign bytes change nothing."""
    assert read(value, record(0, "a", 1)) == ["unreadable", "counts"]


def test_unknown_decisions_in_a_counting_record_still_count() -> None:
    """Whoever decodes them must stop; the reader of counting records need not know them."""
    value = record(0, "a", 0).replace(b"[]", b'[{"type":"NotYetInvented"}]')
    assert read(value, record(1, "a", 0)) == ["counts", "counts"]


def test_a_gap_breaks_the_log() -> None:
    """Offsets are dense; a reader that sees a gap, or an offset again, stops."""
    for offset in (1, -1):
        with pytest.raises(LogBroken, match="part of the log is gone"):
            CountingReader().read(offset, record(0, "a", 0))


def test_progress_names_the_last_counting_record() -> None:
    """Voids move only the next offset."""
    reader = CountingReader()
    for offset, value in enumerate((None, record(0, "a", 1), record(5, "a", 1), None)):
        reader.read(offset, value)
    assert reader.progress == Progress(4, 0, WriterEpoch("a"), 1)


def test_a_resumed_reader_says_the_same() -> None:
    """At every point of the log."""
    log = [record(0, "a", 0), record(2, "a", 0), record(1, "b", 2), record(1, "a", 0), record(2, "b", 2), None]
    whole = read(*log)
    reader = CountingReader()
    for offset, value in enumerate(log):
        assert read(*log[offset:], progress=reader.progress) == whole[offset:]
        reader.read(offset, value)


def test_the_anchor_is_the_record_that_was_remembered() -> None:
    """Its source offset, its load and, where known, the crc of its request."""
    progress = Progress(3, 1, WriterEpoch("a"), 2)
    check_anchor(progress, record(1, "a", 0))
    check_anchor(progress, record(1, "a", 0, crc=7), 7)


@pytest.mark.parametrize("value", [None, b"x", record(2, "a", 0), record(1, "b", 0), record(1, "a", 0, crc=8)])
def test_another_record_at_the_anchor_breaks_the_log(value: bytes | None) -> None:
    """The log lost its tail or was replaced."""
    with pytest.raises(LogBroken, match="lost its tail or was replaced"):
        check_anchor(Progress(3, 1, WriterEpoch("a"), 2), value, 7)
