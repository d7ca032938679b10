"""One history: loads take over in one line, and every table follows it."""

from replay.evidence import Applied, Database, Evidence, Findings, Partition, Violation, asked_at, decided_at
from replay.ledger import Stocks

NAME = "S14"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "decisions records"


def check(evidence: Evidence) -> Findings:
    """Each load takes over once and keeps its start; Postgres is what the line adds up to where its progress stands."""
    looked = 0
    for partition in evidence.partitions.values():
        looked += len(partition.decisions)
        yield from _line(partition)
        if evidence.database is not None:
            yield from _readers(evidence.database, partition, evidence.settle_ms)
    return looked


def _line(partition: Partition) -> Findings:
    # A load takes over only where it stands at its start. Keeping that start, it can do so once.
    starts: dict[str, int] = {}
    for record in partition.counting:
        at = decided_at(partition.number, record.offset)
        if record.answers is None:
            yield Violation(at, "counts and cannot be read: every reader has to stop here")
        if starts.setdefault(record.load, record.start) != record.start:
            what = f"load {record.load[:8]} says it began at {record.start}, and before at {starts[record.load]}"
            yield Violation(at, what)
    return 0


def _readers(database: Database, partition: Partition, settle_ms: int) -> Findings:
    number = partition.number
    applied = database.applied.get(number)
    late = next((record for record in partition.counting if database.knows(number, record, settle_ms)), None)
    if applied is None:
        if late is not None:
            yield Violation(f"progress/{number}", "nothing of the partition was ever applied")
        return 0
    line = [record for record in partition.counting if record.offset < applied.next_offset]
    here = (line[-1].source_offset, line[-1].load, line[-1].offset) if line else (-1, "", -1)
    if here != (applied.source_offset, applied.load, applied.anchor):
        said = Applied(applied.next_offset, *here)
        yield Violation(f"progress/{number}", f"the order-writer is at {tuple(applied)}, the line at {tuple(said)}")
    behind = next((r for r in partition.counting[len(line) :] if database.knows(number, r, settle_ms)), None)
    if behind is not None:
        yield Violation(
            decided_at(number, behind.offset),
            f"counts for more than {settle_ms // 1_000} s, and Postgres has not applied it",
        )
    yield from _catalogue(database, partition, applied)
    return 0


def _catalogue(database: Database, partition: Partition, applied: Applied) -> Findings:
    stocks = Stocks()
    for place, answer in partition.answers():
        if place[1] > applied.source_offset:
            break
        stock_now = stocks.of(answer)
        if stock_now is not None:
            stock_now.move(answer)
        if answer.type == "Rejected" and answer.purchase_id not in database.rows:
            yield Violation(asked_at(place), f"{answer.purchase_id} was rejected, and there is no row")
    for product_id, stock_now in stocks.items():
        shown = database.products.get(product_id)
        if shown is None or (shown.stock, shown.available) != (stock_now.stock, stock_now.left):
            said = f"{shown.available} of {shown.stock}" if shown else "nothing"
            what = f"the catalogue says {said}, the line {stock_now.left} of {stock_now.stock}"
            yield Violation(f"products/{product_id}", what)
    return 0
