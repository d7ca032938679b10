"""No buyer ever holds more than the limit of that moment."""

from collections import defaultdict

from replay.contract import WHOLE
from replay.evidence import Evidence, Findings, Violation, asked_at

NAME = "S15"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "reservations"


def check(evidence: Evidence) -> Findings:
    """Keep each buyer's live units; a limit that is lowered later takes nothing away."""
    looked = 0
    for partition in evidence.partitions.values():
        limits: dict[str, int] = {}
        units: defaultdict[tuple[str, str], int] = defaultdict(int)
        for place, answer in partition.answers():
            who = (answer.product_id, answer.buyer_id)
            if answer.type in WHOLE:
                limits[answer.product_id] = answer.per_buyer_limit
            elif answer.type == "Released":
                units[who] -= answer.quantity
            elif answer.type == "Reserved":
                looked += 1
                units[who] += answer.quantity
                limit = limits.get(answer.product_id, 0)
                if units[who] > limit:
                    what = f"{answer.buyer_id} holds {units[who]} units of {answer.product_id}, and may hold {limit}"
                    yield Violation(asked_at(place), what)
    return looked
