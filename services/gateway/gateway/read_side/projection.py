"""The projection of products and purchases: a fold of counting decisions and of order events. Pure.

It is a copy for answering quickly: it may lag, and it forgets the purchases untouched for longest. How fresh it is,
`freshness.py` knows. Must not do I/O or read a clock.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, assert_never

from gateway.read_side.purchase_memory import PurchaseMemory, decided, ordered
from gateway.read_side.purchase_state import Purchase
from stampede_schemas.decisions import (
    AnyDecision,
    Ignored,
    ProductChanged,
    ProductListed,
    ProductRetired,
    ProductStatus,
    Rejected,
    Released,
    Reserved,
    Restocked,
    RestockRejected,
    Unreadable,
)
from stampede_schemas.identifiers import Millis, Position, ProductId
from stampede_schemas.order_events import AnyOrderEvent

OUTCOMES = ("reserved", "rejected", "released", "confirmed")  # of purchases, in the order of the feed of the sale
OUTCOMES_MAX = 10_000  # of operators' requests
OPENING_GRACE_MS = 50  # the keenest buyer's key must not be burnt by a clock that is a little behind

SaleStatus = Literal["upcoming", "open", "paused", "sold_out", "closed"]
OperatorOutcome = ProductListed | ProductChanged | ProductRetired | Restocked | RestockRejected | Ignored


@dataclass(slots=True)
class Product:
    """A product as of the last decision seen. `stock`, `available` and `confirmed` are units; money is minor units.

    Units that are neither available nor confirmed are on hold and may come back.
    """

    product_id: ProductId
    name: str
    unit_price_minor: int
    currency: str
    stock: int
    available: int
    per_buyer_limit: int
    hold_ms: int
    status: ProductStatus
    opens_at_ms: int | None = None
    closes_at_ms: int | None = None
    confirmed: int = 0

    @property
    def on_hold(self) -> int:
        """Units that are reserved and not paid for yet."""
        return max(self.stock - self.available - self.confirmed, 0)

    @property
    def may_reopen(self) -> bool:
        """Whether holds exist that may end and give their units back."""
        return self.on_hold > 0

    def sale_status(self, now_ms: int | None) -> SaleStatus:
        """The status that buyers see at broker time `now_ms`; with None the window is taken to be open."""
        if self.status in ("closed", "retired"):
            return "closed"
        if self.status == "paused":
            return "paused"
        if now_ms is not None:
            if self.opens_at_ms is not None and now_ms < self.opens_at_ms:
                return "upcoming"
            if self.closes_at_ms is not None and now_ms >= self.closes_at_ms:
                return "closed"
        return "open" if self.available > 0 else "sold_out"


@dataclass(slots=True)
class Tally:
    """Decisions since this gateway began to read, and the products they changed; for the feed of the sale."""

    decided: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    touched: set[ProductId] = field(default_factory=set)


class Projection:
    """The fold. Each `fold...` says which keys changed: purchase ids and operators' request ids."""

    def __init__(self, memory: PurchaseMemory | None = None) -> None:
        self.products: dict[ProductId, Product] = {}
        self.memory = memory or PurchaseMemory()
        self.tally = Tally()
        self._outcomes: OrderedDict[str, OperatorOutcome] = OrderedDict()

    def purchase(self, purchase_id: str) -> Purchase | None:
        """The known state of a purchase; None: nothing, or forgotten."""
        return self.memory.get(purchase_id)

    def outcome(self, request_id: str) -> OperatorOutcome | None:
        """The decision about an operator's request, if it was decided not long ago."""
        return self._outcomes.get(request_id)

    def fold(
        self, partition: int, source_offset: int, decisions: Iterable[AnyDecision], at_ms: Millis | None = None
    ) -> list[str]:
        """Take the decisions of one counting record; `at_ms` is when the requests they answer were appended."""
        changed: list[str] = []
        for index, decision in enumerate(decisions):
            match decision:
                case Reserved() | Rejected():
                    self._set_available(decision.product_id, decision.available_after)
                    self.tally.decided["reserved" if isinstance(decision, Reserved) else "rejected"] += 1
                    self.memory.decided(decided(decision, Position(partition, source_offset, index), at_ms))
                    changed.append(decision.purchase_id)
                case Released():  # the buyer learns of it by the order event, which carries the row's version
                    self.tally.decided["released"] += 1
                    self._set_available(decision.product_id, decision.available_after)
                case ProductListed() | ProductChanged() | ProductRetired():
                    self._product(decision)
                    changed.append(self._remember(decision.request_id, decision))
                case Restocked():
                    self._set_available(decision.product_id, decision.available_after)
                    self.products[decision.product_id].stock += decision.quantity
                    changed.append(self._remember(decision.request_id, decision))
                case RestockRejected():
                    changed.append(self._remember(decision.request_id, decision))
                case Ignored():
                    changed += self._ignored(decision, Position(partition, source_offset, index))
                case Unreadable():
                    pass
                case _:
                    assert_never(decision)
        return changed

    def fold_order(self, event: AnyOrderEvent) -> list[str]:
        """Take an event of `orders`; older versions than what is known change nothing."""
        if event.status not in ("confirmed", "released"):
            return []  # nothing publishes it; a reservation is shown by its decision
        before, state = self.memory.get(event.purchase_id), ordered(event)
        now = self.memory.merge(state)
        if now is before or now.version != state.version:
            return []
        product = self.products.get(event.product_id)
        if product is not None:
            gained = (state.status == "confirmed") - (before is not None and before.status == "confirmed")
            product.confirmed += gained * event.quantity
            self.tally.decided["confirmed"] += max(gained, 0)
            self.tally.touched.add(event.product_id)
        return [event.purchase_id]

    def restore(self, products: Iterable[Product], purchases: Iterable[Purchase]) -> None:
        """Begin with what the order-writer's tables held at the point from which decisions are folded."""
        self.products = {product.product_id: product for product in products}
        for purchase in purchases:
            self.memory.merge(purchase)

    def _product(self, decision: ProductListed | ProductChanged | ProductRetired) -> None:
        before = self.products.get(decision.product_id)
        self.tally.touched.add(decision.product_id)
        self.products[decision.product_id] = Product(
            decision.product_id,
            decision.name,
            decision.unit_price_minor,
            decision.currency,
            decision.stock,
            decision.available_after,
            decision.per_buyer_limit,
            decision.hold_ms,
            decision.status,
            decision.opens_at_ms,
            decision.closes_at_ms,
            before.confirmed if before else 0,
        )

    def _set_available(self, product_id: ProductId, available: int) -> None:
        product = self.products.get(product_id)
        if product is not None:
            product.available = available
            self.tally.touched.add(product_id)

    def _ignored(self, decision: Ignored, at: Position) -> list[str]:
        if decision.purchase_id is None:
            return [self._remember(decision.request_id, decision)] if decision.request_id else []
        if decision.of is None and decision.reason != "retired":
            return []  # a release of what is not held: nothing about the purchase
        self.memory.ignored(decision.purchase_id, at, decision.of, mismatch=decision.mismatch)
        return [decision.purchase_id]

    def _remember(self, request_id: str, decision: OperatorOutcome) -> str:
        self._outcomes.setdefault(request_id, decision)  # a repeat is Ignored: the first outcome is the answer
        if len(self._outcomes) > OUTCOMES_MAX:
            self._outcomes.popitem(last=False)
        return request_id
