"""What this gateway knows of products and purchases: a fold of counting decisions and of order events. Pure.

It is a copy for answering quickly, never a judge: it may lag, it forgets the purchases it saw longest ago, and where
two positions claim one purchase it says so (`row_decides`) instead of choosing. Must not do I/O or read a clock.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

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
)
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId
from stampede_schemas.orders import AnyOrderEvent
from stampede_schemas.requests import PurchaseRequested

PURCHASES_MAX = 200_000
OUTCOMES_MAX = 10_000
OPENING_GRACE_MS = 50  # the keenest buyer's key must not be burnt by a clock that is a little behind

PurchaseStatus = Literal["pending", "reserved", "confirmed", "rejected", "released"]
SaleStatus = Literal["upcoming", "open", "paused", "sold_out", "closed"]
_RANK: dict[str, int] = {"pending": 0, "reserved": 1, "rejected": 1, "confirmed": 2, "released": 3}
OperatorOutcome = ProductListed | ProductChanged | ProductRetired | Restocked | RestockRejected | Ignored


@dataclass(slots=True)
class Product:
    """A product as of the last decision seen. `stock`, `available` and `confirmed` are units; money is minor units.

    What is neither available nor confirmed is on hold and may come back.
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
        """What a buyer sees at broker time `now_ms`; with None the window is taken to be open."""
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
class Purchase:
    """One purchase as far as it is known here; `version` 0 is pending, and it never falls."""

    purchase_id: PurchaseId
    buyer_id: BuyerId | None = None
    product_id: ProductId | None = None
    quantity: int = 0
    fingerprint: str = ""
    status: PurchaseStatus = "pending"
    version: int = 0
    reason: str | None = None
    reservation_no: int | None = None
    unit_price_minor: int | None = None
    currency: str | None = None
    position: Position | None = None
    hold_until_ms: Millis | None = None
    refund: str = "none"
    trace_id: str | None = None
    row_decides: bool = False  # answered before we looked, or twice: only the row knows which answer holds
    changed_at_ms: Millis | None = None  # since when it is so: the broker's clock for a decision, then the database's
    cancel_asked: bool = False  # by this gateway; a confirmed order has something left to wait for then

    @property
    def may_change(self) -> bool:
        """Whether there is something left to wait for."""
        waiting = self.cancel_asked and self.status == "confirmed"
        return self.status in ("pending", "reserved") or self.refund == "due" or waiting

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to cancel."""
        return self.status in ("rejected", "released")


@dataclass(slots=True)
class Tally:
    """What was decided since this gateway began to read, and which products it changed; for the feed of the sale."""

    reserved: int = 0
    rejected: int = 0
    released: int = 0
    confirmed: int = 0
    touched: set[ProductId] = field(default_factory=set)


class Projection:
    """The fold. Each `fold...` says which keys changed: purchase ids and operators' request ids."""

    def __init__(self, purchases_max: int = PURCHASES_MAX) -> None:
        self.products: dict[ProductId, Product] = {}
        self.tally = Tally()
        self._purchases: OrderedDict[PurchaseId, Purchase] = OrderedDict()
        self._outcomes: OrderedDict[str, OperatorOutcome] = OrderedDict()
        self._purchases_max = purchases_max

    def purchase(self, purchase_id: str) -> Purchase | None:
        """What is known of a purchase; None: never heard of it, or forgotten."""
        return self._purchases.get(PurchaseId(purchase_id))

    def outcome(self, request_id: str) -> OperatorOutcome | None:
        """What became of an operator's request, if it was decided not long ago."""
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
                    self._decided(decision, Position(partition, source_offset, index), at_ms)
                    changed.append(decision.purchase_id)
                case Released():  # the buyer hears of it by the order event, which carries the row's version
                    self.tally.released += 1
                    self._set_available(decision.product_id, decision.available_after)
                    known = self._purchases.get(decision.purchase_id)
                    if known and decision.reason == "already_decided" and known.position == decision.reservation:
                        known.row_decides = True  # it was bought before we began to read, perhaps as something else
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
                    changed += self._ignored(decision)
        return changed

    def fold_order(self, event: AnyOrderEvent) -> list[str]:
        """Take an event of `orders`; older versions than what is known change nothing."""
        purchase = self._at(event.purchase_id)
        if (event.version, _RANK[event.status]) <= (purchase.version, _RANK[purchase.status]):
            return []
        product = self.products.get(event.product_id)
        if product is not None:
            gained = (event.status == "confirmed") - (purchase.status == "confirmed")
            product.confirmed += gained * event.quantity
            self.tally.confirmed += max(gained, 0)
            self.tally.touched.add(event.product_id)
        purchase.buyer_id, purchase.product_id, purchase.quantity = event.buyer_id, event.product_id, event.quantity
        purchase.status, purchase.version, purchase.reason = event.status, event.version, event.reason
        purchase.unit_price_minor, purchase.currency = event.unit_price_minor, event.currency
        purchase.reservation_no, purchase.position = event.reservation_no, event.reservation
        purchase.refund, purchase.changed_at_ms = event.refund, event.occurred_at_ms
        purchase.trace_id = event.traceparent[3:35] if event.traceparent else purchase.trace_id
        return [event.purchase_id]

    def accepted(self, request: PurchaseRequested, position: Position) -> None:
        """This gateway holds the log's acknowledgement of a purchase; a decision seen earlier stays."""
        purchase = self._at(request.purchase_id)
        if purchase.buyer_id is None:
            purchase.buyer_id, purchase.product_id = request.buyer_id, request.product_id
            purchase.quantity, purchase.fingerprint = request.quantity, request.fingerprint
            purchase.position = position
            purchase.trace_id = request.traceparent[3:35] if request.traceparent else None

    def cancel_asked(self, purchase_id: str) -> None:
        """This gateway holds the log's acknowledgement of a cancellation."""
        if (purchase := self._purchases.get(PurchaseId(purchase_id))) is not None:
            purchase.cancel_asked = True

    def restore(self, products: Iterable[Product], purchases: Iterable[Purchase]) -> None:
        """Begin with what the order-writer's tables held at the point from which decisions are folded."""
        self.products = {product.product_id: product for product in products}
        for purchase in purchases:
            self.merge(purchase)

    def merge(self, row: Purchase) -> Purchase:
        """Take a row of Postgres, the judge; returns what is known now. A version never goes back."""
        known = self._at(row.purchase_id)
        if not known.row_decides and row.version < known.version:
            return known
        row.version, row.cancel_asked = max(row.version, known.version), known.cancel_asked
        self._purchases[row.purchase_id] = row
        return row

    def _at(self, purchase_id: PurchaseId) -> Purchase:
        found = self._purchases.get(purchase_id)
        if found is not None:
            self._purchases.move_to_end(purchase_id)
            return found
        found = self._purchases[purchase_id] = Purchase(purchase_id)
        if len(self._purchases) > self._purchases_max:
            self._purchases.popitem(last=False)
        return found

    def _decided(self, decision: Reserved | Rejected, position: Position, at_ms: Millis | None) -> None:
        if isinstance(decision, Reserved):
            self.tally.reserved += 1
        else:
            self.tally.rejected += 1
        purchase = self._at(decision.purchase_id)
        if purchase.version > 0:
            purchase.row_decides = purchase.row_decides or purchase.position != position
            if purchase.fingerprint:
                return
        if purchase.version == 0:
            purchase.status, purchase.version, purchase.position = "rejected", 1, position
            purchase.changed_at_ms = at_ms
            if isinstance(decision, Reserved):
                purchase.status, purchase.reservation_no = "reserved", decision.reservation_no
                purchase.unit_price_minor, purchase.currency = decision.unit_price_minor, decision.currency
            else:
                purchase.reason = decision.reason
        purchase.buyer_id, purchase.product_id = decision.buyer_id, decision.product_id
        purchase.quantity, purchase.fingerprint = decision.quantity, decision.fingerprint
        if decision.traceparent:
            purchase.trace_id = decision.traceparent[3:35]

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

    def _ignored(self, decision: Ignored) -> list[str]:
        if decision.purchase_id is None:
            return [self._remember(decision.request_id, decision)] if decision.request_id else []
        if decision.of is None:
            return []
        purchase = self._at(decision.purchase_id)
        if purchase.version == 0:  # the answer was given before this gateway began to read, or it was forgotten
            purchase.row_decides, purchase.position = True, decision.of
        return [decision.purchase_id]

    def _remember(self, request_id: str, decision: OperatorOutcome) -> str:
        self._outcomes.setdefault(request_id, decision)  # a repeat is Ignored: the first outcome is the one to tell
        if len(self._outcomes) > OUTCOMES_MAX:
            self._outcomes.popitem(last=False)
        return request_id


def refused_at_the_door(product: Product, now_ms: int | None) -> Literal["sold-out", "not-open"] | None:
    """What the door says without asking the log: only what is sure, so that no winner is sent away.

    `now_ms` is the broker's time at the latest known to have come, None if unknown; the log judges the edge.
    """
    if product.status != "open":
        return "not-open"
    if now_ms is not None:
        if product.opens_at_ms is not None and now_ms + OPENING_GRACE_MS < product.opens_at_ms:
            return "not-open"
        if product.closes_at_ms is not None and now_ms >= product.closes_at_ms:
            return "not-open"
    return "sold-out" if product.available <= 0 else None
