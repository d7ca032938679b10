"""Every reservation ends confirmed or comes back once, and in time."""

from replay.contract import LogPosition
from replay.evidence import Database, Evidence, Findings, Row, Violation, asked_at

NAME = "S5"
NEEDS: tuple[str, ...] = ("database",)
LOOKS_AT = "reservations"
GRACE_MS = 15_000  # what an authorisation that is under way, and a sweep, may add to a hold


def check(evidence: Evidence) -> Findings:
    """Join log and rows both ways. What Postgres has not applied yet is left alone for 30 s."""
    database = evidence.database
    assert database is not None
    for partition in evidence.partitions.values():
        for record in partition.counting:
            if not database.knows(partition.number, record, evidence.settle_ms):
                continue
            for index, answer in enumerate(record.answers or ()):
                place = (partition.number, record.source_offset, index)
                if answer.type == "Reserved":
                    wrong = _reserved(evidence, database, place, answer.purchase_id)
                elif answer.type == "Released" and answer.reservation is not None:
                    row = database.rows.get(answer.purchase_id)
                    mine = row is not None and row.place == answer.reservation
                    kept = mine and row is not None and not (row.status == "released" and row.returned)
                    wrong = "its units are back on sale, its row does not say so" if kept else ""
                else:
                    continue
                if wrong:
                    yield Violation(asked_at(place), f"{answer.purchase_id}: {wrong}")
    for row in database.rows.values():
        if row.returned and row.place[0] in evidence.partitions and row.place not in evidence.released:
            what = "marked as back on sale, but no decision released it"
            yield Violation(f"purchases/{row.purchase_id}", what)
    return len(evidence.reserved)


def _reserved(evidence: Evidence, database: Database, place: LogPosition, purchase_id: str) -> str:
    row = database.rows.get(purchase_id)
    if row is None:
        return "reserved, and there is no row"
    forgotten = row.product_id in evidence.retired  # a retired product takes nothing back
    returned = place in evidence.released or forgotten
    if row.place != place:
        return "" if returned else "reserved, and its row is about another request"
    return _ended(row, evidence, database.now_ms, returned=returned)


def _ended(row: Row, evidence: Evidence, now_ms: int, *, returned: bool) -> str:
    if row.status == "reserved":
        if evidence.at_rest:
            return "neither sold nor given back, and nothing is on its way"
        open_ms = now_ms - (row.hold_until_ms or 0) - GRACE_MS - evidence.settle_ms
        return f"open {open_ms / 1_000:.0f} s longer than a hold can be" if open_ms > 0 else ""
    if row.status == "released" and not returned and row.updated_at_ms < now_ms - evidence.settle_ms:
        return "released in its row, and its units never came back"
    return "reserved in the log, rejected in its row" if row.status == "rejected" else ""
