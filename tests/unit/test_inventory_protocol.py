"""The deciding protocol step by step: what it asks for, and when. The simulator walks the ways that these do not."""

import pytest

from inventory.effects import (
    Acknowledge,
    Effect,
    LoadTable,
    Produce,
    ReadRequests,
    SendDeadLetters,
    Stop,
    WriteCommit,
    WriteParts,
)
from inventory.protocol import (
    BATCHES_IN_FLIGHT_MAX,
    LETTERS_BYTES_MAX,
    READ_RECORDS_MAX,
    SNAPSHOT_DECISIONS_MIN,
    TAKEOVERS_MAX,
    PartitionProcessor,
    snapshot_due,
)
from stampede_schemas.codec import decode_snapshot, encode_requests
from stampede_schemas.identifiers import WriterEpoch
from stampede_schemas.snapshots import SnapshotCommitted
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS
from tests.support.builders.requests import listing, purchase
from tests.support.fakes.log import TOPIC_IDS, MemoryLog, run_load
from tests.support.fakes.partition import carry_out, settle


class Stage:
    """A partition that is loaded and decides, with nothing carried out for it."""

    def __init__(self, *values: bytes | None, snapshot_every: int = 10**9) -> None:
        self.log = MemoryLog()
        for value in values:
            self.log.append(REQUESTS.name, value, 1_000)
        loads = iter("abcdefghijklmnopqrstuvwxyz")
        self.partition = PartitionProcessor(
            0, TOPIC_IDS, lambda: WriterEpoch(next(loads)), snapshot_due=lambda decided, _: decided >= snapshot_every
        )
        self.load(self.partition.assigned())

    def load(self, effects: list[Effect], now_s: float = 0.0) -> list[Effect]:
        """Answer the one load asked for, and write down the birth of the partition if that is asked for."""
        (ask,) = effects
        assert isinstance(ask, LoadTable)
        follows = self.partition.loaded(ask.attempt, run_load(self.log, known=ask.known), now_s)
        for effect in follows:
            if isinstance(effect, WriteCommit):
                self.log.append(STOCK_SNAPSHOTS.name, effect.value)
        return [effect for effect in follows if not isinstance(effect, WriteCommit)]

    def deliver(self, *offsets: int) -> list[Effect]:
        """The stream delivers these."""
        return [effect for offset in offsets for effect in self.partition.delivered(self.log.requests[offset])]

    def land(self, effects: list[Effect]) -> list[Effect]:
        """Everything produced lands and is reported; returns what follows."""
        follows: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Produce):
                for record in effect.records:
                    landed = self.log.append(DECISIONS.name, record.value)
                    follows += self.partition.reported(record.source_offset, landed)
        return follows

    def usurp(self) -> None:
        """Another worker's record stands where ours was expected."""
        self.log.append(DECISIONS.name, b"{}")


def requests(count: int) -> list[bytes]:
    """A listing and purchases, one a record."""
    return [encode_requests([listing(stock=99)])] + [
        encode_requests([purchase(f"b{n}", f"u{n}")]) for n in range(1, count)
    ]


def names(effects: list[Effect]) -> list[str]:
    """What was asked for, without the details."""
    return [type(effect).__name__ for effect in effects]


def test_an_empty_snapshot_at_birth_names_the_topics() -> None:
    """Once: should a topic be recreated before the first real snapshot, its successor is found out."""
    stage = Stage()
    (birth,) = [decode_snapshot(record.value or b"") for record in stage.log.snapshots]
    assert isinstance(birth, SnapshotCommitted)
    assert birth.topic_ids == TOPIC_IDS
    assert stage.load(stage.partition.assigned()) == []


def test_only_a_report_makes_an_answer_a_fact() -> None:
    """Nothing is acknowledged before."""
    stage = Stage(*requests(2))
    produced = stage.deliver(0, 1)
    assert names(produced) == ["Produce", "Produce"]
    assert stage.land(produced) == [Acknowledge(0), Acknowledge(1)]


def test_four_batches_are_in_flight_and_what_waits_becomes_one_batch() -> None:
    """Batches form by themselves."""
    stage = Stage(*requests(9))
    produced = stage.deliver(*range(9))
    assert [len(e.records) for e in produced if isinstance(e, Produce)] == [1] * BATCHES_IN_FLIGHT_MAX
    assert stage.partition.backlog == 5
    (first, *_) = produced
    follows = stage.land([first])
    assert [len(e.records) for e in follows if isinstance(e, Produce)] == [5]
    stage.land([*produced[1:], *follows])
    for _ in range(9):
        stage.log.append(REQUESTS.name, requests(1)[0])
    assert len(stage.deliver(*range(9, 18))) == BATCHES_IN_FLIGHT_MAX


def test_a_batch_holds_few_bytes_of_dead_letters() -> None:
    """Or a producer would refuse the letters of what piled up, and its worker meet them again after each restart."""
    large = b"\xff" * 1_000_000
    stage = Stage(*requests(1), *[large] * 30)
    ask = stage.partition.assigned()
    for offset in range(31):
        stage.deliver(offset)
    effects, batches = stage.load(ask), list[int]()
    while effects:
        for sending in (effect for effect in effects if isinstance(effect, SendDeadLetters)):
            batches.append(sum(len(letter.content) for letter in sending.dead_letters))
            effects = stage.partition.dead_letters_sent(sending.attempt)
        effects = [effect for effect in (*effects, *stage.land(effects)) if isinstance(effect, SendDeadLetters)]
    assert sum(batches) == 30 * len(large)
    assert max(batches) <= LETTERS_BYTES_MAX + len(large)


def test_a_batch_holds_at_most_500_requests() -> None:
    """Unless it is one record, which may hold as many by itself."""
    large = encode_requests([purchase(f"b{n}", f"u{n}") for n in range(300)])
    stage = Stage(*requests(1), large, large)
    ask = stage.partition.assigned()
    stage.deliver(0, 1, 2)
    produced = stage.load(ask)
    assert [len(e.records) for e in produced if isinstance(e, Produce)] == [2, 1]


def test_what_is_delivered_before_the_load_waits_for_it() -> None:
    """And is decided right after it."""
    stage = Stage(*requests(2))
    ask = stage.partition.assigned()
    assert stage.deliver(0, 1) == []
    assert names(stage.load(ask)) == ["Produce"]


def test_a_load_begun_before_the_last_assignment_is_dropped() -> None:
    """Its end may be long past."""
    stage = Stage(*requests(1))
    (old,) = stage.partition.assigned()
    new = stage.partition.assigned()
    assert isinstance(old, LoadTable)
    assert stage.partition.loaded(old.attempt, run_load(stage.log), 0.0) == []
    assert not stage.partition.drained
    stage.load(new)
    assert stage.partition.drained


def test_own_records_land_before_the_next_load() -> None:
    """A load that missed them would not be the end of the log."""
    stage = Stage(*requests(2))
    produced = stage.deliver(0)
    assert stage.partition.assigned() == []
    assert names(stage.land(produced)) == ["LoadTable"]


def test_whoever_finds_another_offset_loads_again_and_decides_from_there() -> None:
    """Up to the highest offset that was delivered, by reading the requests."""
    stage = Stage(*requests(3))
    produced = stage.deliver(0, 1, 2)
    stage.usurp()
    reload = stage.land(produced)
    assert names(reload) == ["LoadTable"]
    (read,) = stage.load(reload)
    assert isinstance(read, ReadRequests)
    assert (read.start, read.end) == (0, 3)
    again = stage.partition.requests_read(read.attempt, stage.log.requests)
    assert [record.source_offset for effect in again if isinstance(effect, Produce) for record in effect.records] == [
        0, 1, 2,
    ]  # fmt: skip
    assert stage.land(again)[-1] == Acknowledge(2)


def test_two_owners_who_fight_do_not_go_on_for_ever() -> None:
    """More than five takeovers in half a minute: it stops, and stays out."""
    stage = Stage(*requests(1))
    effects = stage.deliver(0)
    for fight in range(TAKEOVERS_MAX + 1):
        stage.usurp()
        effects = stage.load(stage.land(effects), now_s=fight)
        if fight < TAKEOVERS_MAX:
            (read,) = effects
            assert isinstance(read, ReadRequests)
            effects = stage.partition.requests_read(read.attempt, stage.log.requests)
    (stop,) = effects
    assert isinstance(stop, Stop)
    assert stop.restart_cooldown


def test_a_report_of_unknown_fate_ends_the_process() -> None:
    """The record may have landed or not: only a load can tell."""
    stage = Stage(*requests(1))
    stage.deliver(0)
    (stop,) = stage.partition.reported(0, None, "timed out")
    assert isinstance(stop, Stop)
    assert not stop.restart_cooldown
    assert stage.deliver(0) == []


def test_a_hole_of_the_stream_is_read_and_decided_first() -> None:
    """It stays in order."""
    stage = Stage(*requests(4))
    assert stage.deliver(2) == [ReadRequests(1, 0, 2)]
    assert stage.deliver(3) == []
    produced = stage.partition.requests_read(1, stage.log.requests[0:2])
    assert names(produced) == ["Produce"]
    assert stage.land(produced)[-1] == Acknowledge(3)


def test_a_large_hole_is_read_in_pieces() -> None:
    """And everything in it is decided in order, once."""
    count = 2 * READ_RECORDS_MAX + 7
    stage = Stage(*requests(count))
    done = carry_out(stage.log, stage.partition, stage.deliver(count - 1))
    reads = [(e.start, e.end) for e in done if isinstance(e, ReadRequests)]
    assert reads == [(0, 500), (500, 1_000), (1_000, 1_006)]
    assert done[-1] == Acknowledge(count - 1)
    assert len(stage.log.decisions) == count


def test_a_skipped_last_record_is_read_after_a_quiet_second() -> None:
    """Two ticks without a delivery."""
    stage = Stage(*requests(2))
    assert stage.partition.tick(0, 2) == []
    assert stage.partition.tick(0, 2) == [ReadRequests(1, 0, 2)]
    assert stage.partition.tick(0, 2) == []


def test_records_delivered_while_they_are_read_are_decided_once() -> None:
    """The answer that brings nothing new is no lost log."""
    stage = Stage(*requests(2))
    stage.partition.tick(0, 2)
    stage.partition.tick(0, 2)
    stage.land(stage.deliver(0, 1))
    assert stage.partition.requests_read(1, stage.log.requests) == []
    assert stage.partition.phase == "deciding"


def test_requests_that_are_gone_end_the_process() -> None:
    """Undecided ones, at the head, in a hole or at the tail."""
    stage = Stage(*requests(2))
    stage.deliver(1)
    assert names(stage.partition.requests_read(1, [])) == ["Stop"]
    assert names(Stage(*requests(2)).partition.tick(1, 2)) == ["Stop"]
    stage = Stage(*requests(2))
    stage.land(stage.deliver(0, 1))
    assert stage.partition.tick(0, 2) == []
    assert names(stage.partition.tick(0, 1)) == ["Stop"]


def test_ends_asked_for_before_the_last_answers_prove_nothing() -> None:
    """What was confirmed since lies beyond them."""
    stage = Stage(*requests(2))
    assert stage.partition.tick(0, 0) == []
    stage.land(stage.deliver(0, 1))
    assert stage.partition.tick(0, 0) == []


@pytest.mark.parametrize("bad", [None, b"\xff", b'{"requests":[]}', b'{"requests":[{"type":"Unheard"}]}'])
def test_a_dead_letter_is_durable_before_its_decision(bad: bytes | None) -> None:
    """Nothing is produced, and nothing later decided, until it is."""
    stage = Stage(*requests(1), bad, *requests(1))
    stage.land(stage.deliver(0))
    (sending,) = stage.deliver(1, 2)
    assert isinstance(sending, SendDeadLetters)
    (dead_letter,) = sending.dead_letters
    assert dead_letter.content == (b'{"type":"Unheard"}' if bad and b"Unheard" in bad else bad or b"")
    assert not stage.partition.drained
    assert names(stage.partition.dead_letters_sent(sending.attempt)) == ["Produce", "Produce"]


def test_one_bad_request_does_not_harm_its_batch() -> None:
    """The others are answered in their places."""
    good = encode_requests([purchase("a", "ann"), purchase("b", "bob")])
    stage = Stage(*requests(1), good.replace(b'"buyer_id":"ann"', b'"buyer_id":7'))
    done = settle(stage.log, stage.partition)
    (record,) = next(e for e in reversed(done) if isinstance(e, Produce)).records
    assert [type(decision).__name__ for decision in record.decisions] == ["Unreadable", "Reserved"]


def test_what_was_confirmed_is_acknowledged_when_it_comes_again() -> None:
    """And what is in flight is not."""
    stage = Stage(*requests(2))
    stage.land(stage.deliver(0))
    stage.deliver(1)
    assert stage.deliver(0) == [Acknowledge(0)]
    assert stage.deliver(1) == []


def test_a_snapshot_is_begun_when_nothing_is_in_flight_and_deciding_goes_on() -> None:
    """What waits is not left waiting."""
    stage = Stage(*requests(4), snapshot_every=2)
    produced = stage.deliver(0, 1, 2, 3)
    assert names(produced) == ["Produce", "Produce"]
    follows = stage.land(produced)
    assert names(follows) == ["Acknowledge", "Acknowledge", "WriteParts"]
    parts = follows[-1]
    assert isinstance(parts, WriteParts)
    assert names(stage.partition.packed(parts.id)) == ["Produce"]


def test_nothing_is_decided_while_the_table_is_being_packed() -> None:
    """A snapshot must be the table of one moment; a snapshot that failed costs nothing else."""
    stage = Stage(*requests(3), snapshot_every=1)
    parts = stage.land(stage.deliver(0))[-1]
    assert isinstance(parts, WriteParts)
    assert stage.deliver(1, 2) == []
    assert stage.partition.packed("another") == []
    assert names(stage.partition.packed(parts.id)) == ["Produce"]
    assert stage.partition.parts_written(parts.id, None) == []


def test_a_snapshot_is_committed_when_its_parts_are_durable() -> None:
    """Not before, and not for parts of another one."""
    stage = Stage(*requests(1), snapshot_every=1)
    parts = stage.land(stage.deliver(0))[-1]
    assert isinstance(parts, WriteParts)
    assert stage.partition.parts_written("another", [0]) == []
    assert names(stage.partition.parts_written(parts.id, [0])) == ["WriteCommit"]
    assert stage.partition.parts_written(parts.id, [0]) == []


def test_snapshots_are_due_by_what_was_decided_and_what_is_remembered() -> None:
    """More than 50,000, and at least as many as the last snapshot can have held."""
    assert not snapshot_due(50_000, 0)
    assert snapshot_due(50_001, 100_002)
    assert not snapshot_due(60_000, 120_001)


@pytest.mark.parametrize(
    ("adds", "written"),
    [(1.0, 5), (0.5, 9), (0.0, 19)],
    ids=["every decision adds something", "every other does", "none does"],
)
def test_snapshots_never_stop(adds: float, written: int) -> None:
    """A million decisions: what must be folded again is never more than twice the minimum, or than all there is."""
    snapshots = since = 0
    for decided in range(1, 1_000_001):
        since += 1
        remembered = int(decided * adds)
        if snapshot_due(since, remembered):
            snapshots, since = snapshots + 1, 0
        assert since <= max(2 * SNAPSHOT_DECISIONS_MIN, remembered)
    assert snapshots == written


def test_a_revoked_partition_does_nothing_until_it_is_assigned_again() -> None:
    """Reports of what was in flight are only counted down."""
    stage = Stage(*requests(2))
    produced = stage.deliver(0)
    assert stage.partition.revoked() == []
    assert stage.land(produced) == []
    assert stage.deliver(1) == []
    assert stage.partition.tick(0, 2) == []
    done = carry_out(stage.log, stage.partition, stage.partition.assigned())
    assert done[-1] == Acknowledge(0)
