"""Broken snapshots of a table, each by one small change of the shipped protocol, for the simulator to find."""

from collections.abc import Iterator

from msgspec import Raw
from msgspec.structs import replace

from eventlog.reader import Progress
from inventory.effects import Effect, WriteParts
from inventory.protocol import PartitionProcessor
from inventory.table import StockTable, encode_slice, slices
from stampede_schemas.codec import encode
from stampede_schemas.snapshots import SnapshotPart


class SnapshotsTheUnconfirmed(PartitionProcessor):
    """Packs the table while decisions are in flight."""

    def _advance(self) -> list[Effect]:
        early: list[Effect] = []
        if self.phase == "deciding" and self._in_flight and self._snapshot_due():
            early.append(self._begin_snapshot())
        return early + super()._advance()


class SnapshotNamesTheUnconfirmed(SnapshotsTheUnconfirmed):
    """The same, and it names the last decision rather than the last confirmed one."""

    def _begin_snapshot(self) -> WriteParts:
        confirmed = self.confirmed
        self.confirmed = Progress(
            self._next_decision, self._next_source - 1, self._writer_epoch, self._next_decision - 1
        )
        parts = super()._begin_snapshot()
        self.confirmed = confirmed
        return parts


class DecidesWhilePacking(PartitionProcessor):
    """Goes on deciding before the table was packed."""

    def _advance(self) -> list[Effect]:
        effects = super()._advance()
        if self._packing:
            self._packing = False
            effects = super()._advance() + effects
        return effects


class SnapshotNamesItsWriter(PartitionProcessor):
    """A snapshot carries its writer's load instead of the last counting record's."""

    def _begin_snapshot(self) -> WriteParts:
        parts = super()._begin_snapshot()
        assert self._snapshot is not None
        self._snapshot = replace(self._snapshot, load=self._writer_epoch)
        return parts


class SnapshotLosesAPart(PartitionProcessor):
    """The commit record does not name the last part."""

    def parts_written(self, name: str, offsets: list[int] | None) -> list[Effect]:
        """See PartitionProcessor."""
        return super().parts_written(name, offsets and offsets[:-1])


def packed_as(table: StockTable, parts: WriteParts) -> WriteParts:
    """The same snapshot with another table in it."""

    def pack() -> Iterator[bytes]:
        for index, piece in enumerate(slices(table)):
            yield encode(SnapshotPart(parts.id, index, Raw(encode_slice(piece))))

    return parts._replace(pack=pack)


class SnapshotForgetsBodies(PartitionProcessor):
    """The rejections in a snapshot are those of the older form: no fingerprint is known of them."""

    def _begin_snapshot(self) -> WriteParts:
        bare = {key: (offset, index, "") for key, (offset, index, _) in self.table.rejected.items()}
        return packed_as(replace(self.table, rejected=bare), super()._begin_snapshot())


class SnapshotMixesGenerations(PartitionProcessor):
    """A snapshot holds all rejections as one generation."""

    def _begin_snapshot(self) -> WriteParts:
        table = self.table
        mixed = replace(table, rejected=table.rejected_before | table.rejected, rejected_before={})
        return packed_as(mixed, super()._begin_snapshot())
