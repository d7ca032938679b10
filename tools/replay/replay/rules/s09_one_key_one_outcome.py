"""One key is one purchase with one outcome, told in the same bytes.

The log alone shows a purchase that took units twice, or that stands where its id does not belong.
"""

from collections import defaultdict

from replay.contract import LogPosition, home_of
from replay.evidence import Evidence, Findings, Violation, asked_at
from replay.journal import Attempt, Journal

NAME = "S9"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "purchases"


def check(evidence: Evidence) -> Findings:
    """Look for a second reservation of any purchase; then compare the answers to each key with one another."""
    reserved: dict[str, LogPosition] = {}
    seen: set[str] = set()
    for place, answer in evidence.answers():
        if not (name := answer.purchase_id):
            continue
        if name not in seen:
            seen.add(name)
            if (home := home_of(name)) not in {None, place[0]}:
                yield Violation(asked_at(place), f"{name} belongs to partition {home}")
        if answer.type == "Reserved" and place not in evidence.undone:
            first = reserved.setdefault(name, place)
            if first != place:
                yield Violation(asked_at(place), f"{name} was reserved before, at {asked_at(first)}")
    if evidence.journal is not None:
        yield from _told(evidence.journal)
    return len(seen)


def _told(journal: Journal) -> Findings:
    owners: dict[str, tuple[str, str]] = {}
    for attempt in journal.attempts:
        wrong = _wrong(attempt, journal.product_id)
        owner = owners.setdefault(attempt.purchase_id or attempt.key, (attempt.buyer, attempt.key))
        if owner != (attempt.buyer, attempt.key):
            wrong = f"{attempt.purchase_id} was also given to key {owner[1]} of {owner[0]}"
        if wrong:
            yield Violation(f"journal/{attempt.line}", wrong)
    return len(journal.attempts)


def _wrong(attempt: Attempt, product_id: str) -> str:
    """A key used for another product is another purchase, so answers are compared product by product."""
    named: defaultdict[str, set[str]] = defaultdict(set)
    bodies: defaultdict[str, set[bytes]] = defaultdict(set)
    for told in attempt.answers:
        product = str(told.content.get("product_id", product_id))
        if told.content.get("purchase_id"):  # a rejection names its purchase too: of two ids it is often the second
            named[product].add(told.content["purchase_id"])
        if told.status == 202:
            bodies[product].add(told.body)
    for ids in named.values():
        if len(ids) > 1:
            return f"key {attempt.key} was given {len(ids)} purchases"
    for said in bodies.values():
        if len(said) > 1:
            return f"key {attempt.key} got {len(said)} different 202 bodies"
    return ""
