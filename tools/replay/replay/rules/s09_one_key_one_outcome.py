"""One key is one purchase with one outcome, told in the same bytes."""

from collections import defaultdict

from replay.contract import Answer, Place
from replay.evidence import Evidence, Findings, Violation
from replay.journal import Attempt

NAME = "S9"
NEEDS: tuple[str, ...] = ("journal",)
LOOKS_AT = "keys"


def check(evidence: Evidence) -> Findings:
    """Compare the answers to each key with one another, and with what took effect in the log."""
    assert evidence.journal is not None
    effective: defaultdict[str, list[tuple[Place, Answer]]] = defaultdict(list)
    given_back = {answer.reservation for _, answer in evidence.answers() if answer.reason == "already_decided"}
    for place, answer in evidence.reserved.items():
        if place not in given_back:
            effective[answer.purchase_id].append((place, answer))
    owners: dict[str, tuple[str, str]] = {}
    for attempt in evidence.journal.attempts:
        wrong = _wrong(attempt)
        owner = owners.setdefault(attempt.purchase_id or attempt.key, (attempt.buyer, attempt.key))
        if owner != (attempt.buyer, attempt.key):
            wrong = f"{attempt.purchase_id} was also given to key {owner[1]} of {owner[0]}"
        if len(effective.get(attempt.purchase_id, ())) > 1:
            wrong = f"{attempt.purchase_id} holds {len(effective[attempt.purchase_id])} reservations"
        if wrong:
            yield Violation(f"journal/{attempt.line}", wrong)
    return len(evidence.journal.attempts)


def _wrong(attempt: Attempt) -> str:
    # Also a refusal that is final names its purchase: the second of two ids is often the one that was turned down.
    named = {told.content["purchase_id"] for told in attempt.answers if told.content.get("purchase_id")}
    if len(named) > 1:
        return f"key {attempt.key} was given {len(named)} purchases"
    bodies = {told.body for told in attempt.answers if told.status == 202}
    return f"key {attempt.key} got {len(bodies)} different 202 bodies" if len(bodies) > 1 else ""
