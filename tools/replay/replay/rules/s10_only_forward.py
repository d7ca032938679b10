"""The status and the version of a purchase only move forward, wherever they are shown.

A rejection is the first of them: a purchase that was rejected may win once, as version 2, when more was rejected since
than its partition remembers.
"""

from itertools import pairwise
from typing import NamedTuple

from replay.evidence import Evidence, Findings, Row, Violation
from replay.journal import Attempt

NAME = "S10"
NEEDS: tuple[str, ...] = ("journal",)
LOOKS_AT = "keys"
_ENDED = frozenset({"rejected", "confirmed", "released"})
_RANK = {"pending": 0, "rejected": 1, "reserved": 2, "confirmed": 3, "released": 4}


class Seen(NamedTuple):
    """What was shown of a purchase. `version` is None where only the status was."""

    version: int | None
    status: str


def check(evidence: Evidence) -> Findings:
    """Order what was seen of each purchase; the row comes last. At rest, the buyer was told what it says."""
    assert evidence.journal is not None
    rows = evidence.database.rows if evidence.database else {}
    for attempt in evidence.journal.attempts:
        seen = _seen(attempt)
        if (row := rows.get(attempt.purchase_id)) is not None:
            seen.append(Seen(row.version, row.status))
        wrong = _backwards(seen) or _won_after_all(evidence, attempt.purchase_id, seen)
        if evidence.at_rest and attempt.outcome in _ENDED and evidence.database is not None:
            wrong = wrong or _told_otherwise(attempt.outcome, row)
        if wrong:
            yield Violation(f"journal/{attempt.line}", f"{attempt.purchase_id} {wrong}")
    latest: dict[str, tuple[int, str]] = {}
    for event in evidence.orders or ():
        version, status = latest.get(event.purchase_id, (0, "pending"))
        if event.version > version and _RANK[event.status] < _RANK[status]:
            yield Violation(f"orders/{event.purchase_id}/{event.version}", f"was {status}, then {event.status}")
        if event.version >= version:
            latest[event.purchase_id] = (event.version, event.status)
    return len(evidence.journal.attempts)


def _told_otherwise(outcome: str, row: Row | None) -> str:
    said = row.status if row else "nothing"
    return f"is {said} in its row, and its buyer was told {outcome}" if said != outcome else ""


def _seen(attempt: Attempt) -> list[Seen]:
    """In the order in which it was seen. Two sends at once cross on their way: of those only the end is in order."""
    answers = [] if attempt.duplicate else [one.content for one in attempt.answers if one.status == 201]
    told = [Seen(content.get("version"), str(content.get("status"))) for content in answers]
    seen = [*told, *(Seen(*polled) for polled in attempt.polled), Seen(None, attempt.outcome)]
    return [one for one in seen if one.status in _RANK]


def _backwards(seen: list[Seen]) -> str:
    for before, after in pairwise(seen):
        if _RANK[after.status] < _RANK[before.status]:
            return f"was {before.status}, then {after.status}"
    numbered = [(one.version, one.status) for one in seen if one.version is not None]
    for (version, status), (later, then) in pairwise(numbered):
        if later < version or (later == version and then != status):
            return f"was {status} with version {version}, then {then} with version {later}"
    return ""


def _won_after_all(evidence: Evidence, purchase_id: str, seen: list[Seen]) -> str:
    """Whether it was rejected and then more than that, though its rejection had to be remembered."""
    rejected = any(one.status == "rejected" for one in seen)
    if rejected and _RANK[seen[-1].status] > _RANK["rejected"] and not evidence.forgot(purchase_id):
        return f"was rejected, then {seen[-1].status}, and its rejection was not forgotten in between"
    return ""
