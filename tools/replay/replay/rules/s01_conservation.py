"""Listed + restocked - reserved + released is what is left, never below 0."""

from replay.evidence import Evidence, Findings, Violation, asked_at
from replay.ledger import CARRIES_STOCK, Stocks

NAME = "S1"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "decisions"


def check(evidence: Evidence) -> Findings:
    """Add up each product and compare with what every decision on it says. A product is reported once."""
    looked = 0
    for partition in evidence.partitions.values():
        stocks, wrong = Stocks(), set[str]()
        for place, answer in partition.answers():
            looked += 1
            if answer.type not in CARRIES_STOCK:
                continue
            stock_now = stocks.of(answer)
            if stock_now is None:
                if answer.available_after:
                    yield Violation(asked_at(place), f"{answer.available_after} left of a product never listed")
                continue
            stock_now.move(answer)
            if answer.product_id in wrong:
                continue
            left = stock_now.left
            if left < 0 or left != answer.available_after:
                wrong.add(answer.product_id)
                said = f"{answer.type} of {answer.product_id} says {answer.available_after} are left"
                yield Violation(
                    asked_at(place), f"{said}; {stock_now.stock} - {stock_now.reserved} + {stock_now.released} = {left}"
                )
    return looked
