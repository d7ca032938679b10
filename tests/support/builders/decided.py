"""A partition whose requests are decided and applied one by one, by the shipped rules."""

from dataclasses import dataclass, field

from inventory.domain import decide, evolve
from inventory.table import StockTable
from stampede_schemas.decisions import AnyDecision, Rejected
from stampede_schemas.identifiers import Millis, Position
from stampede_schemas.requests import AnyRequest


@dataclass
class Sale:
    """A partition whose requests stand at offsets 0, 1, 2 …"""

    table: StockTable = field(default_factory=lambda: StockTable(0))
    offset: int = 0

    def when(self, request: AnyRequest, at_ms: int = 1_000) -> AnyDecision:
        """Ask, and apply the answer."""
        decision = decide(self.table, request, Millis(at_ms))
        evolve(self.table, decision, Position(0, self.offset, 0))
        self.offset += 1
        return decision


def given(*requests: AnyRequest) -> Sale:
    """A sale in which these were asked, one after the other."""
    sale = Sale()
    for request in requests:
        sale.when(request)
    return sale


def refused(decision: AnyDecision) -> tuple[str, int]:
    """The reason of a rejection and what is left."""
    assert isinstance(decision, Rejected), decision
    return decision.reason, decision.available_after
