"""Every row has its decision in the log, with the same content."""

from replay.contract import Answer, Place
from replay.evidence import Evidence, Findings, Row, Violation

NAME = "S7"
NEEDS: tuple[str, ...] = ("database",)
LOOKS_AT = "rows"
_ALWAYS = ("purchase_id", "buyer_id", "product_id", "quantity", "payment_method", "fingerprint")
# Postgres refused the values of such a row: it is a stub, and its dead letter holds them.
_STUB = ("purchase_id",)
_RESERVED = (*_ALWAYS, "reservation_no", "unit_price_minor", "currency")
_REJECTED = (*_ALWAYS, "reason")


def check(evidence: Evidence) -> Findings:
    """Look up where each row says that its request stands; it must be the purchase's first outcome there."""
    assert evidence.database is not None
    outcomes: dict[Place, Answer] = {}
    first: dict[tuple[int, str], Place] = {}
    for place, answer in evidence.answers():
        if answer.type in {"Reserved", "Rejected"}:
            outcomes[place] = answer
            first.setdefault((place[0], answer.purchase_id), place)
    for row in evidence.database.rows.values():
        if row.place[0] not in evidence.partitions:
            continue
        if wrong := _wrong(row, outcomes.get(row.place), first.get((row.place[0], row.purchase_id))):
            yield Violation(f"purchases/{row.purchase_id}", wrong)
    return len(evidence.database.rows)


def _wrong(row: Row, answer: Answer | None, first: Place | None) -> str:
    if answer is None:
        return f"nothing was reserved or rejected at {row.place}"
    if (row.status == "rejected") != (answer.type == "Rejected"):
        return f"{row.status} in its row, {answer.type} in the log at {row.place}"
    stub = row.reason == "row_error" and row.status == "released"
    for name in _STUB if stub else _REJECTED if answer.type == "Rejected" else _RESERVED:
        if getattr(row, name) != getattr(answer, name):
            return f"{name} is {getattr(row, name)!r} in its row, {getattr(answer, name)!r} in the log at {row.place}"
    return f"its row stands at {row.place}, but its first outcome at {first}" if row.place != first else ""
