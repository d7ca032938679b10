"""Stock by plain addition: what the decisions of a product add up to. The checker's own fold, without rules."""

from replay.contract import WHOLE, Answer


class Stock:
    """One product: units listed and restocked, reserved, released, ever."""

    __slots__ = ("released", "reserved", "stock")

    def __init__(self) -> None:
        self.stock = self.reserved = self.released = 0

    @property
    def left(self) -> int:
        """What can still be sold."""
        return self.stock - self.reserved + self.released

    def move(self, answer: Answer) -> None:
        """Add what one decision did to this product."""
        match answer.type:
            case "ProductListed":
                self.stock = answer.stock
            case "Restocked":
                self.stock += answer.quantity
            case "Reserved":
                self.reserved += answer.quantity
            case "Released":
                self.released += answer.quantity


class Stocks(dict[str, Stock]):
    """All products of one partition."""

    def of(self, answer: Answer) -> Stock | None:
        """The product a decision speaks of; None if it is on no product that was ever listed."""
        if answer.type == "ProductListed" and answer.product_id not in self:
            self[answer.product_id] = Stock()
        return self.get(answer.product_id)


CARRIES_STOCK = WHOLE | {"Restocked", "RestockRejected", "Reserved", "Rejected", "Released"}
