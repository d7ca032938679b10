"""Broken protocols and readers, each by one small change of a shipped class, for the simulator to find."""

import dataclasses
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from eventlog.reader import CountingReader, Fenced, Progress
from inventory.effects import Acknowledge, Effect, Produce, SendDeadLetters, WriteParts
from inventory.loading import Loaded, Record
from inventory.protocol import PartitionProcessor
from stampede_schemas.decisions import Envelope
from stampede_schemas.identifiers import WriterEpoch
from tests.simulation.broken_rules import (
    finds_no_body_different,
    forgets_half_of_the_rejected,
    forgets_purchases,
    forgets_rejected_bodies,
    keeps_the_last_unit,
    oversells_by_one,
    rejects_what_is_retired,
    releases_twice,
    releases_wrong_positions,
    repeats_the_last_answer,
)
from tests.simulation.broken_sagas import (
    DropsCommandsOfTheRejected,
    KeepsCommandsOfTheRejected,
    NeverRevives,
    ReducesToTheFirst,
    RevivesWithoutAVersion,
    believes_the_row,
    forgets_the_void,
    gives_back_elsewhere,
    gives_nothing_back,
    never_refunds,
    revives,
)
from tests.simulation.broken_snapshots import (
    DecidesWhilePacking,
    SnapshotForgetsBodies,
    SnapshotLosesAPart,
    SnapshotMixesGenerations,
    SnapshotNamesItsWriter,
    SnapshotNamesTheUnconfirmed,
    SnapshotsTheUnconfirmed,
)
from tests.simulation.reference import Json, Reference
from tests.simulation.world import Variant

# ---- which records count


class FirstCopyCounts(CountingReader):
    """The first record with the next source offset counts, whoever wrote it."""

    def _fenced(self, offset: int, envelope: Envelope | None) -> Fenced | None:
        if envelope is None or envelope.source_offset <= self.progress.source_offset:
            return Fenced("repeated")
        return None if envelope.source_offset == self.progress.source_offset + 1 else Fenced("gap")


def first_copy_counts(reference: Reference, offset: int, record: Json) -> bool:
    """The same belief, for the reference."""
    follows: bool = record["source_offset"] == reference.answered + 1
    return follows


class CountsWhereExpected(FirstCopyCounts):
    """A record counts if it stands where its writer expected it (and answers the next request)."""

    def _fenced(self, offset: int, envelope: Envelope | None) -> Fenced | None:
        fenced = super()._fenced(offset, envelope)
        return fenced or (None if envelope is not None and envelope.start == offset else Fenced("foreign"))


def counts_where_expected(reference: Reference, offset: int, record: Json) -> bool:
    """The same belief, for the reference."""
    return first_copy_counts(reference, offset, record) and record["start"] == offset


class ExpectsEachRecord(PartitionProcessor):
    """Writes into `start` where each single record is expected."""

    @property
    def _fencing_offset(self) -> int:
        return self._next_decision

    @_fencing_offset.setter
    def _fencing_offset(self, start: int) -> None:
        """Where the load ended is not written."""


class LastCopyWins(CountingReader):
    """A second answer to the same request replaces the first."""

    def _fenced(self, offset: int, envelope: Envelope | None) -> Fenced | None:
        fenced = super()._fenced(offset, envelope)
        again = envelope is not None and envelope.source_offset == self.progress.source_offset
        return None if again else fenced


class JumpsCount(CountingReader):
    """A record of the current load counts although one before it was lost."""

    def _fenced(self, offset: int, envelope: Envelope | None) -> Fenced | None:
        fenced = super()._fenced(offset, envelope)
        return None if fenced == Fenced("gap") else fenced


class ForgetsTheLoad(CountingReader):
    """Resumes without the load of the last counting record."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(replace(progress, load=WriterEpoch("")))


# ---- the protocol


class NeverLooksWhereItLanded(PartitionProcessor):
    """Takes every delivery report as good news."""

    def reported(self, source_offset: int, acknowledged_offset: int | None, error: str | None = None) -> list[Effect]:
        """See PartitionProcessor."""
        where = acknowledged_offset if acknowledged_offset is None else self._in_flight[0].expected
        return super().reported(source_offset, where, error)


class TrustsUnknownFates(PartitionProcessor):
    """A record whose fate is unknown will have landed."""

    def reported(self, source_offset: int, acknowledged_offset: int | None, error: str | None = None) -> list[Effect]:
        """See PartitionProcessor."""
        return super().reported(
            source_offset, self._in_flight[0].expected if acknowledged_offset is None else acknowledged_offset
        )


class AcknowledgesTooEarly(PartitionProcessor):
    """Acknowledges what it gave to the producer."""

    def _decide_batch(self) -> list[Effect]:
        return [*super()._decide_batch(), Acknowledge(self._next_source - 1)]


class AcknowledgesRedelivered(PartitionProcessor):
    """A record that was decided before is acknowledged, confirmed or not."""

    def delivered(self, record: Record) -> list[Effect]:
        """See PartitionProcessor."""
        if self.phase == "deciding" and record.offset < self._next_source:
            return [Acknowledge(record.offset)]
        return super().delivered(record)


class OneEpochForAll(PartitionProcessor):
    """Every load of every worker has the same id."""

    @property
    def _new_epoch(self) -> Callable[[], WriterEpoch]:
        return lambda: WriterEpoch("same")

    @_new_epoch.setter
    def _new_epoch(self, new_epoch: Callable[[], WriterEpoch]) -> None:
        """Whatever is given."""


class DeadLettersAfterDecisions(PartitionProcessor):
    """Sends the decision that a request is unreadable without waiting for its dead letter."""

    def _decide_batch(self) -> list[Effect]:
        effects = super()._decide_batch()
        records, self._held_back = self._held_back, None
        return effects if records is None else [self._produce(records), *effects]

    def dead_letters_sent(self, attempt: int) -> list[Effect]:
        """See PartitionProcessor."""
        return []


class PassesHoles(PartitionProcessor):
    """What the stream skipped is left out."""

    def _read(self, end: int) -> list[Effect]:
        self._next_source = end
        return self._advance()


class NeverReadsTheTail(PartitionProcessor):
    """Waits for the stream to deliver the last record."""

    def tick(self, requests_first: int, requests_end: int) -> list[Effect]:
        """See PartitionProcessor."""
        return []


class ReadsTheTailAtItsPeril(PartitionProcessor):
    """Judges ends that were asked for long ago by what is answered now."""

    def tick(self, requests_first: int, requests_end: int) -> list[Effect]:
        """See PartitionProcessor."""
        self._answered_at_tick = self.confirmed.source_offset
        return super().tick(requests_first, requests_end)


class StopsAtOldRecords(PartitionProcessor):
    """Takes an answer that brings nothing new for a lost log."""

    def requests_read(self, attempt: int, records: Sequence[Record]) -> list[Effect]:
        """See PartitionProcessor."""
        return super().requests_read(attempt, [r for r in records if r.offset >= self._next_source])


class StrandsTheWaiting(PartitionProcessor):
    """Decides no further once it began a snapshot, until something else happens."""

    def _begin_snapshot(self) -> WriteParts:
        self._waiting.clear()
        self._highest = self._next_source - 1
        return super()._begin_snapshot()

    def tick(self, requests_first: int, requests_end: int) -> list[Effect]:
        """See PartitionProcessor."""
        return []


class StartsOneTooFar(PartitionProcessor):
    """Believes its load ended one record later."""

    def loaded(self, attempt: int, loaded: Loaded, now_s: float) -> list[Effect]:
        """See PartitionProcessor."""
        return super().loaded(attempt, dataclasses.replace(loaded, fencing_offset=loaded.fencing_offset + 1), now_s)


class GoesOnWhereTheStreamIs(PartitionProcessor):
    """After a load it decides what the stream delivers next, not what comes next."""

    def delivered(self, record: Record) -> list[Effect]:
        """See PartitionProcessor."""
        if self.phase == "deciding" and not self._in_flight and record.offset > self._next_source:
            self._next_source = record.offset
        return super().delivered(record)


class ForgetsWhatIsInFlight(PartitionProcessor):
    """Does not wait for its own records to land when it has to load again, and takes their reports for new ones."""

    def assigned(self) -> list[Effect]:
        """See PartitionProcessor."""
        self._in_flight.clear()
        self._batches = 0
        return super().assigned()


class DecidesInPlaceOfLoading(PartitionProcessor):
    """Where another worker's record stands, it just expects its own records one further."""

    def reported(self, source_offset: int, acknowledged_offset: int | None, error: str | None = None) -> list[Effect]:
        """See PartitionProcessor."""
        if acknowledged_offset is not None and self.phase == "deciding":
            shift = acknowledged_offset - self._in_flight[0].expected
            for index, record in enumerate(self._in_flight):
                self._in_flight[index] = record._replace(expected=record.expected + shift)
            self._next_decision += shift
        return super().reported(source_offset, acknowledged_offset, error)


class ReportsLate(PartitionProcessor):
    """Produces the held batch behind one that was decided after it."""

    def _decide_batch(self) -> list[Effect]:
        effects = super()._decide_batch()
        for effect in effects:
            if isinstance(effect, Produce):
                effect.records.reverse()
        return effects


class SendsOtherBytes(PartitionProcessor):
    """The dead letter holds what could be decoded, not what was sent."""

    def _decide_batch(self) -> list[Effect]:
        return [
            SendDeadLetters(
                e.attempt,
                [replace(dead_letter, content=dead_letter.content.strip(b"\xff")) for dead_letter in e.dead_letters],
            )
            if isinstance(e, SendDeadLetters)
            else e
            for e in super()._decide_batch()
        ]


MUTANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "the first copy of a source offset counts",
            reader=FirstCopyCounts,
            follower=FirstCopyCounts,
            rule=first_copy_counts,
        ),
        Variant(
            "a record counts where its writer expected it",
            partition=ExpectsEachRecord,
            reader=CountsWhereExpected,
            follower=CountsWhereExpected,
            rule=counts_where_expected,
        ),
        Variant("the last copy wins in one reader", follower=LastCopyWins),
        Variant("the last copy wins in the loads", reader=LastCopyWins),
        Variant("a jump counts in the loads", reader=JumpsCount),
        Variant("a reader resumes without the load", follower=ForgetsTheLoad),
        Variant("no check of the landed offset", partition=NeverLooksWhereItLanded),
        Variant("an unknown fate is success", partition=TrustsUnknownFates),
        Variant("acknowledged before the delivery report", partition=AcknowledgesTooEarly),
        Variant("acknowledged when delivered again", partition=AcknowledgesRedelivered),
        Variant("a snapshot contains unconfirmed decisions", partition=SnapshotsTheUnconfirmed),
        Variant("decides while the table is packed", partition=DecidesWhilePacking),
        Variant("a snapshot names unconfirmed decisions", partition=SnapshotNamesTheUnconfirmed),
        Variant("a snapshot names its writer's load", partition=SnapshotNamesItsWriter),
        Variant("a snapshot loses a part", partition=SnapshotLosesAPart),
        Variant("a snapshot forgets rejected bodies", partition=SnapshotForgetsBodies),
        Variant("a snapshot mixes generations", partition=SnapshotMixesGenerations),
        Variant("one load id for all writers", partition=OneEpochForAll),
        Variant("decisions before their dead letters", partition=DeadLettersAfterDecisions),
        Variant("other bytes in the dead letter", partition=SendsOtherBytes),
        Variant("holes of the stream are left out", partition=PassesHoles),
        Variant("the tail is never read", partition=NeverReadsTheTail),
        Variant("the tail is judged by old ends", partition=ReadsTheTailAtItsPeril),
        Variant("old records are taken for a lost log", partition=StopsAtOldRecords),
        Variant("a snapshot strands what waits", partition=StrandsTheWaiting),
        Variant("a load starts one too far", partition=StartsOneTooFar),
        Variant("goes on where the stream is", partition=GoesOnWhereTheStreamIs),
        Variant("own flights are forgotten when reassigned", partition=ForgetsWhatIsInFlight),
        Variant("follows its records instead of loading", partition=DecidesInPlaceOfLoading),
        Variant("a batch is produced backwards", partition=ReportsLate),
        Variant("no check for duplicates", rules=forgets_purchases),
        Variant("the last unit is never sold", rules=keeps_the_last_unit),
        Variant("released twice", rules=releases_twice),
        Variant("released by the wrong position", rules=releases_wrong_positions),
        Variant("oversold by one", rules=oversells_by_one),
        Variant("no body is found different", rules=finds_no_body_different),
        Variant("rejected bodies are forgotten", rules=forgets_rejected_bodies),
        Variant("a rejection is forgotten too early", rules=forgets_half_of_the_rejected),
        Variant("a rejection is forgotten too late", remembers=1),
        Variant("a repeat names the last answer", rules=repeats_the_last_answer),
        Variant("a retired product rejects", rules=rejects_what_is_retired),
        Variant("a release forgets the money", react=forgets_the_void),
        Variant("a cancelled purchase gives nothing back", react=gives_nothing_back),
        Variant("the row beats the log", react=believes_the_row),
        Variant("a late approval revives", react=revives),
        Variant("a refund is never told", react=never_refunds),
        Variant("a release names another reservation", react=gives_back_elsewhere),
        Variant("a batch is reduced to its first outcome", book=ReducesToTheFirst),
        Variant("a rejected row is final", book=NeverRevives),
        Variant("a rejection is revived without a version", book=RevivesWithoutAVersion),
        Variant("a command on a rejected row is dropped", book=DropsCommandsOfTheRejected),
        Variant("a command on a rejected row waits for ever", book=KeepsCommandsOfTheRejected),
    )
}
