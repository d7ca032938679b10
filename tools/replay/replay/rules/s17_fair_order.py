"""Fair: nobody is turned away for stock while enough of it is left."""

from replay.evidence import Evidence, Findings, Violation, asked_at
from replay.ledger import Stocks

NAME = "S17"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "purchases"


def check(evidence: Evidence) -> Findings:
    """Walk each product in order: who was refused against what was left, and numbers given without a gap."""
    looked = 0
    for partition in evidence.partitions.values():
        stocks, numbers = Stocks(), dict[str, int]()
        for place, answer in partition.answers():
            stock_now = stocks.of(answer)
            left = stock_now.left if stock_now else 0
            if answer.type == "Rejected":
                looked += 1
                if answer.reason in {"sold_out", "not_enough_left"} and left >= max(answer.quantity, 1):
                    what = f"{answer.purchase_id} was {answer.reason}, asking {answer.quantity} of {left} left"
                    yield Violation(asked_at(place), what)
            elif answer.type == "Reserved":
                looked += 1
                wanted = numbers[answer.product_id] = numbers.get(answer.product_id, 0) + 1
                if answer.reservation_no != wanted:
                    what = (
                        f"{answer.purchase_id} has number {answer.reservation_no}, and is the {wanted}. of its product"
                    )
                    yield Violation(asked_at(place), what)
                    numbers[answer.product_id] = answer.reservation_no
            if stock_now is not None:
                stock_now.move(answer)
    return looked
