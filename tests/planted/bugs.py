"""The planted bugs of the real stack: in which service, what has to happen for them to show, and who must name them."""

from typing import Literal, NamedTuple

Role = Literal["inventory", "order-writer", "gateway", "none"]


class Planted(NamedTuple):
    """One bug. `rule` must be among the violated ones within `wait_s` of the sale's end."""

    role: Role
    name: str
    rule: str
    kills: str = ""  # kill -9 of this process amid the sale
    zombie: bool = False  # a record of a worker that was overtaken lands after the sale
    cancels: bool = False  # a product that was sold and paid for is cancelled
    wait_s: float = 15.0

    @property
    def order(self) -> str:
        """What the builds read."""
        return f"{self.role}: {self.name}"


OVERDUE_S = 50.0  # the checker leaves units that come back 30 s

CONTROL = Planted("none", "the shipped services", "", kills="inventory-0", zombie=True, cancels=True)
BUGS = (
    Planted("inventory", "no check for duplicates", "S4"),
    Planted("inventory", "a repeat is never told that its body differs", "S4"),
    Planted("inventory", "a retired product rejects", "S4"),
    Planted("inventory", "the last unit is sold twice", "S1"),
    Planted("inventory", "the last unit is never sold", "S4"),
    Planted("inventory", "a release gives back twice the units", "S1"),
    Planted("inventory", "the first copy counts, after a zombie", "S12", zombie=True),
    Planted("inventory", "a clock in the fold", "S12"),
    Planted("inventory", "poison is passed over without a decision", "S3"),
    Planted("inventory", "other bytes in the dead letter", "S16"),
    Planted("inventory", "one load id for all loads", "S14", kills="inventory-0"),
    Planted("inventory", "decisions by another clock", "S16"),
    Planted("order-writer", "another price in the row", "S7"),
    Planted("order-writer", "progress is committed before its rows", "S5"),
    Planted("order-writer", "a rejection leaves no row", "S14"),
    Planted("order-writer", "a void decision is applied", "S14", zombie=True),
    Planted("order-writer", "the catalogue shows one unit too many", "S14"),
    Planted("order-writer", "the return of units is ignored", "S5"),
    Planted("order-writer", "a declined payment releases nothing", "S5", wait_s=OVERDUE_S),
    Planted("order-writer", "a release names another position", "S5", wait_s=OVERDUE_S),
    Planted("order-writer", "a cancelled order is not refunded", "S21", cancels=True, wait_s=OVERDUE_S),
    Planted("order-writer", "a cancellation is judged when it is read", "S22", cancels=True),
    Planted("gateway", "one key gives two purchases", "S9"),
    Planted("gateway", "202 before the log has acknowledged", "S8", kills="gateway-0"),
    Planted("gateway", "202 for what is not logged", "S8"),
    Planted("gateway", "a polite buyer is told 429", "S11"),
)
