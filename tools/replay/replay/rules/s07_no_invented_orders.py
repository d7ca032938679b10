"""Every row is its purchase's first reservation, else its first rejection, as the log has it."""

from replay.contract import WHOLE, Answer, LogPosition
from replay.evidence import Database, Evidence, Findings, Row, Violation

NAME = "S7"
NEEDS: tuple[str, ...] = ("database",)
LOOKS_AT = "rows"
_ALWAYS = ("purchase_id", "buyer_id", "product_id", "quantity", "payment_method", "fingerprint")
# Postgres refused the values of such a row: it is a stub, and its dead letter holds them.
_STUB = ("purchase_id",)
_RESERVED = (*_ALWAYS, "reservation_no", "unit_price_minor", "currency")
_REJECTED = (*_ALWAYS, "reason")
_VERSION = {"rejected": 1, "reserved": 2}  # whatever came before; events begin one later
_FIRST_EVENT = 3


def check(evidence: Evidence) -> Findings:
    """Look up where each row says that its request stands; it must be the outcome that counts, with all its values."""
    assert evidence.database is not None
    outcomes: dict[LogPosition, Answer] = {}
    holds: dict[str, int] = {}
    for place, answer in evidence.answers():
        if answer.type in {"Reserved", "Rejected"}:
            outcomes[place] = answer
        elif answer.type in WHOLE:
            holds[answer.product_id] = max(answer.hold_ms, holds.get(answer.product_id, 0))
    first = _first(evidence, evidence.database, outcomes)
    told: dict[str, int] = {}
    for event in evidence.orders or ():
        told[event.purchase_id] = min(event.version, told.get(event.purchase_id, event.version))
    for row in evidence.database.rows.values():
        if row.place[0] not in evidence.partitions:
            continue
        latest = evidence.database.now_ms + holds.get(row.product_id, 0)
        wrong = (
            _wrong(row, outcomes.get(row.place), first.get((row.place[0], row.purchase_id)))
            or _wrong_version(row, told.get(row.purchase_id))
            or _wrong_hold(row, outcomes[row.place], latest)
        )
        if wrong:
            yield Violation(f"purchases/{row.purchase_id}", wrong)
    return len(evidence.database.rows)


def _first(
    evidence: Evidence, database: Database, outcomes: dict[LogPosition, Answer]
) -> dict[tuple[int, str], LogPosition]:
    """What counts of each purchase. A reservation replaces a rejection when Postgres has applied it."""
    reserved: dict[tuple[int, str], LogPosition] = {}
    rejected: dict[tuple[int, str], LogPosition] = {}
    for place, answer in outcomes.items():
        if place not in evidence.undone:
            (reserved if answer.type == "Reserved" else rejected).setdefault((place[0], answer.purchase_id), place)
    applied = {number: progress.source_offset for number, progress in database.applied.items()}
    here = {key: place for key, place in reserved.items() if place[1] <= applied.get(place[0], -1)}
    return reserved | rejected | here


def _is_stub(row: Row) -> bool:
    return row.reason == "row_error" and row.status == "released"


def _wrong(row: Row, answer: Answer | None, first: LogPosition | None) -> str:
    if answer is None:
        return f"nothing was reserved or rejected at {row.place}"
    if (row.status == "rejected") != (answer.type == "Rejected"):
        return f"{row.status} in its row, {answer.type} in the log at {row.place}"
    for name in _STUB if _is_stub(row) else _REJECTED if answer.type == "Rejected" else _RESERVED:
        if getattr(row, name) != getattr(answer, name):
            return f"{name} is {getattr(row, name)!r} in its row, {getattr(answer, name)!r} in the log at {row.place}"
    return f"its row stands at {row.place}, but its first outcome at {first}" if row.place != first else ""


def _wrong_version(row: Row, told: int | None) -> str:
    """Above its own a version is only in a database that was restored, where events of the purchase came before."""
    least = _VERSION.get(row.status, _FIRST_EVENT)
    if row.version == least or (row.version > least and (least == _FIRST_EVENT or (told or row.version) < row.version)):
        return ""
    return f"{row.status} with version {row.version}, which begins at {least}"


def _wrong_hold(row: Row, answer: Answer, latest_ms: int) -> str:
    """A hold begins when its row is made; one that a restore began anew ends later, but no later than one from now."""
    if answer.type != "Reserved" or _is_stub(row):
        return ""
    if row.hold_until_ms is None or row.hold_until_ms < row.created_at_ms + answer.hold_ms - 1:
        return f"its hold ends at {row.hold_until_ms}, {answer.hold_ms} ms after {row.created_at_ms} was decided"
    return f"its hold ends at {row.hold_until_ms}, longer than any hold" if row.hold_until_ms > latest_ms else ""
