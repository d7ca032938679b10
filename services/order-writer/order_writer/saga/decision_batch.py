"""From counting decisions to what one transaction writes: rows, product changes and messages to the saga. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, assert_never

from msgspec import Struct

from order_writer.saga import orders
from stampede_schemas.decisions import (
    AnyDecision,
    Ignored,
    ProductChanged,
    ProductListed,
    ProductRetired,
    Rejected,
    Released,
    Reserved,
    Restocked,
    RestockRejected,
    Unreadable,
)
from stampede_schemas.identifiers import Position, ProductId, PurchaseId
from telemetry.traceparent import sampled, trace_id_in


class Row(Struct, frozen=True, gc=False):
    """The outcome of a purchase: the log's decision, and where its request stands."""

    purchase_id: PurchaseId
    decision: Reserved | Rejected
    position: Position

    @property
    def status(self) -> Literal["reserved", "rejected"]:
        """The status that the log gave it."""
        return "reserved" if isinstance(self.decision, Reserved) else "rejected"

    @property
    def traceparent(self) -> str | None:
        """Only where the trace is recorded: payment and compensation join it."""
        trace = self.decision.traceparent
        return trace if sampled(trace) else None


class Entry(Struct, frozen=True, gc=False):
    """A row as it is stored: the state that the saga decided, and the effects of storing it.

    `published`: the highest version published before a restore.
    """

    row: Row
    published: int
    state: orders.Purchase
    effects: tuple[orders.Effect, ...]

    def values(self) -> tuple[object, ...]:
        """In the order of the columns of `decisions.INSERT_PURCHASES`. A placeholder has no number and no price."""
        decision, position, state = self.row.decision, self.row.position, self.state
        held = decision if isinstance(decision, Reserved) and not isinstance(state, orders.Released) else None
        return (
            decision.purchase_id,
            decision.buyer_id,
            decision.product_id,
            decision.quantity,
            state.status,
            state.reason if isinstance(state, orders.Released) else getattr(decision, "reason", None),
            held.reservation_no if held else None,
            held.unit_price_minor if held else None,
            held.currency if held else None,
            decision.payment_method,
            decision.fingerprint,
            position.partition,
            position.offset,
            position.index,
            held.hold_ms if held else None,
            trace_id_in(decision.traceparent),
            self.row.traceparent,
            state.version,
        )


class Record(NamedTuple):
    """A record of a topic: its bytes, where it stands, when the broker says it was appended, and its headers."""

    value: bytes
    partition: int
    offset: int
    appended_at: datetime
    headers: Sequence[tuple[str, bytes]] = ()


class Stock(NamedTuple):
    """Changes to one product: its whole new self if that was decided, units added after it, and what is left."""

    whole: ProductListed | ProductChanged | ProductRetired | None
    added: int
    available: int
    source_offset: int


class Batch:
    """The decisions of several records on their way into one transaction.

    `rows` holds one outcome of each purchase: its first `Reserved`, else its first `Rejected`. `again` holds further
    reservations of the same purchases, `later` what was decided about purchases after that, in order.
    """

    __slots__ = ("again", "decisions", "later", "rows", "stocks")

    def __init__(self) -> None:
        self.rows: dict[PurchaseId, Row] = {}
        self.again: list[Row] = []
        self.later: list[tuple[PurchaseId, orders.Message]] = []
        self.stocks: dict[tuple[int, ProductId], Stock] = {}
        self.decisions = 0

    def add(self, partition: int, source_offset: int, decisions: list[AnyDecision]) -> None:
        """Take in one counting record; records of a partition come in order."""
        self.decisions += len(decisions)
        left: dict[ProductId, int] = {}  # after the last decision: noted once a record
        for index, decision in enumerate(decisions):
            match decision:
                case Reserved() | Rejected():
                    self._outcome(decision, Position(partition, source_offset, index))
                    if not (isinstance(decision, Rejected) and decision.reason == "unknown_product"):
                        left[decision.product_id] = decision.available_after
                case Released():
                    self.later.append(
                        (decision.purchase_id, orders.StockReleased(decision.reservation, decision.reason))
                    )
                    left[decision.product_id] = decision.available_after
                case ProductListed() | ProductChanged() | ProductRetired():
                    left[decision.product_id] = decision.available_after
                    self.stocks[partition, decision.product_id] = Stock(decision, 0, 0, source_offset)
                case Restocked(product_id=product_id):
                    left[product_id] = decision.available_after
                    self._left(partition, source_offset, product_id, left[product_id], decision.quantity)
                case RestockRejected() | Ignored() | Unreadable():
                    pass
                case _:
                    assert_never(decision)
        for product_id, available in left.items():
            self._left(partition, source_offset, product_id, available)

    def _left(self, partition: int, source_offset: int, product_id: ProductId, available: int, added: int = 0) -> None:
        known = self.stocks.get((partition, product_id))
        whole, before = (known.whole, known.added) if known else (None, 0)
        self.stocks[partition, product_id] = Stock(whole, before + added, available, source_offset)

    def _outcome(self, decision: Reserved | Rejected, position: Position) -> None:
        known, row = self.rows.get(decision.purchase_id), Row(decision.purchase_id, decision, position)
        if known is None or (known.status == "rejected" and isinstance(decision, Reserved)):
            self.rows[decision.purchase_id] = row
        elif isinstance(decision, Reserved):
            self.again.append(row)


def entry_of(row: Row, published: int = 0, message: orders.NewRowMessage | None = None) -> Entry:
    """Let the saga decide how a row is stored; see `orders.outcome`."""
    order = order_of(row) if isinstance(row.decision, Reserved) else None
    return Entry(row, published, *orders.outcome(order, published, message))


def order_of(row: Row) -> orders.Order:
    """The order behind a reserved row."""
    held = row.decision
    assert isinstance(held, Reserved)
    return orders.Order(
        held.purchase_id,
        held.buyer_id,
        held.product_id,
        held.quantity,
        row.position,
        held.reservation_no,
        held.unit_price_minor,
        held.currency,
        held.payment_method,
        row.traceparent,
    )
