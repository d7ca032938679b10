"""The parts of a stock snapshot, on `stampede.stock-snapshots`."""

from msgspec import Raw, Struct

from stampede_schemas.identifiers import (
    WriterEpoch,
)


class SnapshotPart(Struct, frozen=True, tag_field="type", tag=True):
    """A slice of a partition's stock table; `content` is the inventory's own business."""

    id: str
    index: int
    content: Raw


class SnapshotCommitted(Struct, frozen=True, tag_field="type", tag=True, omit_defaults=True):
    """Parts `parts` (their offsets) are the whole table after `source_offset`, read up to `next_offset` of decisions.

    `load` and `anchor` are those of the last *counting* record, never the writer's own. `form` is that of the content
    of the parts.
    """

    id: str
    source_offset: int
    next_offset: int
    load: WriterEpoch
    anchor: int
    parts: list[int]
    topic_ids: dict[str, str]
    form: int = 1


AnySnapshotRecord = SnapshotPart | SnapshotCommitted
