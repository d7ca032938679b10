"""Listed + restocked - reserved + released is what is left, never below 0."""

from replay.evidence import Evidence, Findings, Violation, asked_at
from replay.ledger import CARRIES_STOCK, Shelves

NAME = "S1"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "decisions"


def check(evidence: Evidence) -> Findings:
    """Add up each product and compare with what every decision on it says. A product is reported once."""
    looked = 0
    for partition in evidence.partitions.values():
        shelves, wrong = Shelves(), set[str]()
        for place, answer in partition.answers():
            looked += 1
            if answer.type not in CARRIES_STOCK:
                continue
            shelf = shelves.of(answer)
            if shelf is None:
                if answer.available_after:
                    yield Violation(asked_at(place), f"{answer.available_after} left of a product never listed")
                continue
            shelf.move(answer)
            if answer.product_id in wrong:
                continue
            left = shelf.left
            if left < 0 or left != answer.available_after:
                wrong.add(answer.product_id)
                said = f"{answer.type} of {answer.product_id} says {answer.available_after} are left"
                yield Violation(
                    asked_at(place), f"{said}; {shelf.stock} - {shelf.reserved} + {shelf.released} = {left}"
                )
    return looked
