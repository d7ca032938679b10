"""Every worker's table is the fold of the log (SHA-256).

Equality of tables is the claim, so this is the one rule that folds with the inventory's own code; S1 and S4 judge
that code by their own.
"""

from msgspec import DecodeError, msgpack

from inventory.domain import FoldBroken, evolve
from inventory.table import StockTable
from replay.contract import REJECTED_GENERATION
from replay.evidence import Evidence, Findings, Partition, Violation, decided_at
from stampede_schemas.codec import decode_decisions, decode_envelope
from stampede_schemas.identifiers import Position

NAME = "S12"
NEEDS: tuple[str, ...] = ("states",)
LOOKS_AT = "tables"


def check(evidence: Evidence) -> Findings:
    """Fold each partition to where its worker was when it was asked; at rest that is its end."""
    assert evidence.states is not None
    for state in evidence.states:
        partition = evidence.partitions.get(state.partition)
        if partition is None:
            continue
        at = f"state/{state.partition}/{state.source_offset}"
        last = partition.counting[-1].source_offset if partition.counting else -1
        if state.source_offset > last:
            yield Violation(at, f"the worker has answered request {state.source_offset}, the log only {last}")
            continue
        if evidence.at_rest and state.source_offset < last:
            yield Violation(at, f"the worker stopped here, and the log goes on to request {last}")
            continue
        digest = fold(partition, state.source_offset, evidence.generation)
        if isinstance(digest, Violation):
            yield digest
        elif digest != state.sha256:
            yield Violation(at, f"the worker's table is {state.sha256[:16]}…, the fold of the log {digest[:16]}…")
    return len(evidence.states)


def fold(partition: Partition, upto: int, generation: int = REJECTED_GENERATION) -> str | Violation:
    """The digest of the table after request `upto`, or the first decision that does not fit."""
    table = StockTable(partition.number, generation=generation)
    values = {record.offset: record.value for record in partition.decisions}
    for record in partition.counting:
        if record.source_offset > upto:
            break
        try:
            envelope = decode_envelope(values[record.offset])
            assert envelope is not None
            for index, decision in enumerate(decode_decisions(envelope)):
                evolve(table, decision, Position(partition.number, record.source_offset, index))
        except (DecodeError, FoldBroken) as error:
            return Violation(decided_at(partition.number, record.offset), f"cannot be folded: {error}")
    # A worker's table may have come through a snapshot: compare what both look like after a trip over the wire.
    return msgpack.decode(msgpack.encode(table), type=StockTable).digest()
