"""The status of a purchase only moves forward, wherever it is shown."""

from itertools import pairwise

from replay.evidence import Evidence, Findings, Violation
from replay.journal import Attempt

NAME = "S10"
NEEDS: tuple[str, ...] = ("journal",)
LOOKS_AT = "keys"
_RANK = {"pending": 0, "reserved": 1, "confirmed": 2, "released": 3, "rejected": 9}


def check(evidence: Evidence) -> Findings:
    """Order what was seen of each purchase; the row comes last."""
    assert evidence.journal is not None
    rows = evidence.database.rows if evidence.database else {}
    for attempt in evidence.journal.attempts:
        seen = _seen(attempt)
        if attempt.purchase_id in rows:
            seen.append(rows[attempt.purchase_id].status)
        for before, after in pairwise(seen):
            if _RANK[after] < _RANK[before] or (after == "rejected" and before not in {"pending", "rejected"}):
                yield Violation(f"journal/{attempt.line}", f"{attempt.purchase_id} was {before}, then {after}")
                break
    latest: dict[str, tuple[int, str]] = {}
    for event in evidence.orders or ():
        version, status = latest.get(event.purchase_id, (0, "pending"))
        if event.version > version and _RANK[event.status] < _RANK[status]:
            yield Violation(f"orders/{event.purchase_id}/{event.version}", f"was {status}, then {event.status}")
        if event.version >= version:
            latest[event.purchase_id] = (event.version, event.status)
    return len(evidence.journal.attempts)


def _seen(attempt: Attempt) -> list[str]:
    """Statuses in the order they were seen. Two sends at once cross on their way: of those only the end is in order."""
    told = [] if attempt.twin else [str(one.content.get("status")) for one in attempt.answers if one.status == 201]
    seen = [*told, *(status for _, status in attempt.polled), attempt.outcome]
    return [status for status in seen if status in _RANK]
