"""Loading a partition: from the newest usable snapshot or the beginning, and never from half a history."""

from collections.abc import Callable

import pytest

from eventlog.reader import LogBroken
from inventory.domain import FoldBroken
from inventory.effects import WriteCommit, WriteParts
from inventory.loading import Ends, Loaded, Range, Record, SnapshotsUnreadable, load
from inventory.protocol import PartitionProcessor
from stampede_schemas.codec import encode_decisions, encode_requests, source_crc
from stampede_schemas.identifiers import Millis, Position, PurchaseId, WriterEpoch
from stampede_schemas.requests import AnyRequest
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS
from tests.support.builders.requests import listing, purchase
from tests.support.fakes.log import TOPIC_IDS, MemoryLog, run_load
from tests.support.fakes.partition import settle


def sold(*requests: AnyRequest, snapshot_after: int = 10**9) -> MemoryLog:
    """A log in which each request is a record, answered by one worker that makes a snapshot now and then."""
    log = MemoryLog()
    for request in requests:
        log.append(REQUESTS.name, encode_requests([request]), 1_000)
    settle(
        log,
        PartitionProcessor(
            0, TOPIC_IDS, lambda: WriterEpoch("a"), snapshot_due=lambda decided, _: decided >= snapshot_after
        ),
    )
    return log


THREE = (listing(stock=2), purchase("a", "ann"), purchase("b", "bob"))


def test_an_empty_log_loads_as_an_empty_table() -> None:
    """Nothing asked, nothing answered."""
    loaded = run_load(MemoryLog())
    assert (loaded.fencing_offset, loaded.snapshot_at, loaded.progress.source_offset) == (0, -1, -1)
    assert not loaded.table.products


def test_a_load_with_a_snapshot_equals_one_without() -> None:
    """Tail after the newest snapshot, or everything: one table, one progress."""
    log = sold(*THREE, snapshot_after=2)
    with_snapshot = run_load(log)
    assert with_snapshot.snapshot_at > 0
    log.topics[STOCK_SNAPSHOTS.name].clear()
    without = run_load(log)
    assert without.snapshot_at == -1
    assert with_snapshot.table.digest() == without.table.digest()
    assert with_snapshot.progress == without.progress


def test_records_that_land_during_the_load_are_read_too() -> None:
    """The load ends where the log ends, not where it ended when it began."""
    log, grown = sold(*THREE), sold(*THREE, purchase("c", "cid"))
    loading = load(0, TOPIC_IDS)
    ask = next(loading)
    with pytest.raises(StopIteration) as end:  # noqa: PT012 - a dialogue
        while True:
            answer = log.answer(ask)
            if isinstance(ask, Range) and ask.topic == DECISIONS.name:
                log = grown
            ask = loading.send(answer)
    assert end.value.value.fencing_offset == len(grown.decisions) == 4


def test_a_topic_made_anew_stops_the_load() -> None:
    """Also before the first snapshot of anything: an empty one is written at birth."""
    log = sold(*THREE)
    with pytest.raises(LogBroken, match=r"stampede\.decisions was deleted and recreated"):
        run_load(log, topic_ids=TOPIC_IDS | {"stampede.decisions": "another"})


def test_what_this_process_saw_confirmed_must_still_be_there() -> None:
    """A log that lost its tail while we ran is not decided on."""
    log = sold(*THREE)
    known = run_load(log).progress
    assert run_load(log, known=known).fencing_offset == len(log.decisions)
    del log.decisions[-1]
    with pytest.raises(LogBroken, match="lost its tail"):
        run_load(log, known=known)


def _commit_without_parts(log: MemoryLog) -> None:
    """The parts were trimmed; their commit record was not."""
    log.trim(STOCK_SNAPSHOTS.name, len(log.snapshots) - 1)


def _torn_part(log: MemoryLog) -> None:
    log.snapshots[-2] = Record(len(log.snapshots) - 2, None, Millis(0))


def _part_of_another_form(log: MemoryLog) -> None:
    old = log.snapshots[-2].value or b""
    log.snapshots[-2] = Record(
        len(log.snapshots) - 2, old.replace(b'"content":{', b'"content":{"purchases":1,'), Millis(0)
    )


def _foreign_bytes(log: MemoryLog) -> None:
    log.snapshots[-1] = Record(len(log.snapshots) - 1, b"\xff", Millis(0))


@pytest.mark.parametrize("harm", [_commit_without_parts, _torn_part, _part_of_another_form, _foreign_bytes])
def test_a_harmed_snapshot_costs_a_refold_and_nothing_else(harm: Callable[[MemoryLog], None]) -> None:
    """Snapshots are an optimisation: whatever is wrong with one, the table is the same."""
    log = sold(*THREE, snapshot_after=3)
    assert run_load(log).snapshot_at == 2
    whole = run_load(log).table.digest()
    harm(log)
    loaded = run_load(log)
    assert (loaded.snapshot_at, loaded.table.digest()) == (-1, whole)


FOUR = (listing(stock=1), purchase("a", "ann"), purchase("b", "bob"), purchase("b", "bob", fingerprint="g"))


def rewritten(records: list[Record], at: int, *changes: tuple[bytes, bytes]) -> None:
    """Replace parts of a record's bytes; each of them must be there."""
    record = records[at]
    value = record.value or b""
    for old, new in changes:
        assert old in value
        value = value.replace(old, new)
    records[at] = record._replace(value=value)


def _pairs_in_place_of_fingerprints(log: MemoryLog) -> None:
    """As the first version wrote it: the form is not named, and nothing is known of a rejected body."""
    rewritten(log.snapshots, -1, (b',"form":2', b""))
    rewritten(log.snapshots, -2, (b'"b":[2,0,"f"]', b'"b":[2,0]'))


def _an_older_form_that_looks_like_this_one(log: MemoryLog) -> None:
    rewritten(log.snapshots, -1, (b',"form":2', b""))


def _a_newer_form_that_looks_like_this_one(log: MemoryLog) -> None:
    rewritten(log.snapshots, -1, (b',"form":2', b',"form":3'))


def _pairs_under_the_name_of_this_form(log: MemoryLog) -> None:
    rewritten(log.snapshots, -2, (b'"b":[2,0,"f"]', b'"b":[2,0]'))


@pytest.mark.parametrize(
    "older",
    [
        _pairs_in_place_of_fingerprints,
        _an_older_form_that_looks_like_this_one,
        _a_newer_form_that_looks_like_this_one,
        _pairs_under_the_name_of_this_form,
    ],
)
def test_a_snapshot_of_another_form_is_left_aside(older: Callable[[MemoryLog], None]) -> None:
    """The log holds all that it lacks: the table is folded from the beginning, and is the same to the last byte."""
    log = sold(*FOUR, snapshot_after=4)
    whole = run_load(log)
    assert whole.snapshot_at == 3
    older(log)
    loaded = run_load(log)
    assert (loaded.snapshot_at, loaded.table.digest()) == (-1, whole.table.digest())
    assert loaded.table.answered(PurchaseId("b"), "g") == (Position(0, 2, 0), True)


def test_a_usable_snapshot_before_one_of_another_form_is_used() -> None:
    """While old and new workers take turns, each finds its own."""
    log = sold(*FOUR, snapshot_after=2)
    whole = run_load(log)
    assert whole.snapshot_at == 3
    _an_older_form_that_looks_like_this_one(log)
    loaded = run_load(log)
    assert (loaded.snapshot_at, loaded.table.digest()) == (1, whole.table.digest())


@pytest.mark.parametrize("snapshot_after", [3, 10**9])
def test_a_sale_recorded_with_older_decisions_folds_into_the_same_table(snapshot_after: int) -> None:
    """`Ignored` of version 1 knew nothing of bodies, and no table depends on what it says."""
    log = sold(*FOUR, snapshot_after=snapshot_after)
    whole = run_load(log)
    rewritten(log.decisions, 3, (b'"type":"Ignored","v":2', b'"type":"Ignored"'), (b',"mismatch":true', b""))
    loaded = run_load(log)
    assert loaded.snapshot_at == whole.snapshot_at
    assert loaded.table.digest() == whole.table.digest()
    assert loaded.refolded == whole.refolded > 0


def _lost_tail_of_decisions(log: MemoryLog) -> None:
    del log.decisions[1:]


def _lost_head_of_decisions(log: MemoryLog) -> None:
    log.snapshots.clear()
    log.trim(DECISIONS.name, 1)


def _lost_tail_of_requests(log: MemoryLog) -> None:
    del log.requests[2:]


def _lost_head_of_requests(log: MemoryLog) -> None:
    log.append(REQUESTS.name, b"5")
    log.append(REQUESTS.name, b"6")
    log.trim(REQUESTS.name, 4)


def _other_requests(log: MemoryLog) -> None:
    log.requests[2] = Record(2, b"other", Millis(0))


def _other_decision_at_the_anchor(log: MemoryLog) -> None:
    value = (log.decisions[2].value or b"").replace(b'"load":"a"', b'"load":"b"')
    log.decisions[2] = Record(2, value, Millis(0))


@pytest.mark.parametrize(
    "harm",
    [
        _lost_tail_of_decisions,
        _lost_head_of_decisions,
        _lost_tail_of_requests,
        _lost_head_of_requests,
        _other_requests,
        _other_decision_at_the_anchor,
    ],
)
def test_half_a_history_is_not_loaded(harm: Callable[[MemoryLog], None]) -> None:
    """Better no decision than one on a table that is not the fold of everything."""
    log = sold(*THREE, snapshot_after=3)
    harm(log)
    with pytest.raises(LogBroken):
        run_load(log)


def test_a_log_that_lost_only_void_records_is_not_loaded() -> None:
    """The next decisions would stand where a remembered void one stood, and count for some readers only."""
    log = sold(*THREE)
    log.append(DECISIONS.name, b"void")
    settle(log, PartitionProcessor(0, TOPIC_IDS, lambda: WriterEpoch("heir"), snapshot_due=lambda *_: True))
    assert run_load(log).fencing_offset == 4
    del log.decisions[3:]
    with pytest.raises(LogBroken, match="lost its tail"):
        run_load(log)


def test_requests_that_begin_late_are_not_answered() -> None:
    """A log start above 0 with nothing answered: its head is gone."""
    log = MemoryLog()
    for _ in range(3):
        log.append(REQUESTS.name, encode_requests([listing()]))
    log.trim(REQUESTS.name, 1)
    with pytest.raises(LogBroken, match="lost its head"):
        run_load(log)


def test_unknown_decisions_in_a_counting_record_stop_the_load() -> None:
    """Skipping them would make another table than that of those who know them."""
    log = sold(*THREE)
    crc = source_crc(log.append(REQUESTS.name, b"{}").to_bytes())
    value = encode_decisions(3, crc, WriterEpoch("a"), 0, Millis(0), []).replace(b"[]", b'[{"type":"NotYetInvented"}]')
    log.append(DECISIONS.name, value)
    with pytest.raises(LogBroken, match="upgrade this reader"):
        run_load(log)


def test_a_decision_that_does_not_fit_stops_the_load() -> None:
    """A log that says another number is left than comes out was edited or has forked."""
    log = sold(*THREE)
    value = (log.decisions[2].value or b"").replace(b'"available_after":0', b'"available_after":1')
    log.decisions[2] = Record(2, value, Millis(0))
    with pytest.raises(FoldBroken):
        run_load(log)


def test_a_log_that_gives_nothing_is_not_waited_for() -> None:
    """Offsets that are missing at the very end would otherwise be asked for again and again."""
    loading = load(0, TOPIC_IDS)
    ask = next(loading)
    with pytest.raises(LogBroken, match="gives nothing"):  # noqa: PT012 - a dialogue
        for _ in range(100):
            ends = (0, 3) if ask.topic == DECISIONS.name else (0, 0)
            ask = loading.send(ends if isinstance(ask, Ends) else [])


def test_a_snapshot_names_the_last_counting_record() -> None:
    """Also when its writer has not decided anything itself yet."""
    log = sold(*THREE)
    heir = PartitionProcessor(0, TOPIC_IDS, lambda: WriterEpoch("heir"), snapshot_due=lambda *_: True)
    effects = settle(log, heir)
    assert [type(e) for e in effects if isinstance(e, WriteParts | WriteCommit)] == [WriteParts, WriteCommit]
    assert run_load(log).snapshot_at == 2
    assert run_load(log).progress.load == "a"


def load_without_snapshots(log: MemoryLog, refused: type[Ends | Range]) -> Loaded:
    """Load while `stock-snapshots` gives no answer to this kind of question."""
    loading = load(0, TOPIC_IDS)
    ask = next(loading)
    try:
        while True:
            if ask.topic == STOCK_SNAPSHOTS.name and isinstance(ask, refused):
                ask = loading.throw(SnapshotsUnreadable("no leader"))
            else:
                ask = loading.send(log.answer(ask))
    except StopIteration as end:
        loaded: Loaded = end.value
        return loaded


@pytest.mark.parametrize("refused", [Ends, Range])
def test_snapshots_that_cannot_be_read_cost_a_refold(refused: type[Ends | Range]) -> None:
    """The table is that of the whole log; and nobody says for the first time which topics these are."""
    log = sold(*THREE, snapshot_after=2)
    plain, loaded = run_load(log), load_without_snapshots(log, refused)
    assert plain.snapshot_at >= 0 > loaded.snapshot_at
    assert (loaded.table.digest(), loaded.progress) == (plain.table.digest(), plain.progress)
    assert loaded.known_topics


def test_without_snapshots_half_a_log_is_still_refused() -> None:
    """Its head is gone, and what stood there was in a snapshot."""
    log = sold(*THREE, snapshot_after=2)
    log.trim(DECISIONS.name, 1)
    with pytest.raises(LogBroken, match="lost its head"):
        load_without_snapshots(log, Ends)
