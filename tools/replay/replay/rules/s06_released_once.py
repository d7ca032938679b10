"""A reservation comes back at most once, after it was made, and as it was."""

from replay.contract import Answer, LogPosition
from replay.evidence import Evidence, Findings, Violation, asked_at

NAME = "S6"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "releases"


def check(evidence: Evidence) -> Findings:
    """Follow each partition's reservations in order."""
    looked = 0
    for partition in evidence.partitions.values():
        held: dict[LogPosition, Answer] = {}
        released: dict[LogPosition, LogPosition] = {}
        for place, answer in partition.answers():
            if answer.type == "Reserved":
                held[place] = answer
            elif answer.type == "Released":
                looked += 1
                wrong = _wrong(answer, held, released)
                if wrong:
                    yield Violation(asked_at(place), f"{answer.purchase_id}: {wrong}")
                if answer.reservation is not None:
                    released.setdefault(answer.reservation, place)
    return looked


def _wrong(answer: Answer, held: dict[LogPosition, Answer], released: dict[LogPosition, LogPosition]) -> str:
    if answer.reservation is None or (was := held.get(answer.reservation)) is None:
        return f"released a reservation at {answer.reservation}, where none was made before"
    if answer.reservation in released:
        return f"released again; {asked_at(released[answer.reservation])} already did"
    for name in ("purchase_id", "product_id", "buyer_id", "quantity"):
        if getattr(was, name) != getattr(answer, name):
            return f"released with {name} {getattr(answer, name)!r}, reserved with {getattr(was, name)!r}"
    return ""
