"""From counting decisions to what one transaction writes: rows, product changes and messages to the saga. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, assert_never

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

_TRACEPARENT_LENGTH = 55


class Row(NamedTuple):
    """A purchase as it is inserted, in the order of the columns of `consume.decisions.INSERT_PURCHASES`.

    `hold_ms` None: no hold (rejected). `traceparent` only where the trace is recorded: the compensation joins it.
    """

    purchase_id: PurchaseId
    buyer_id: str
    product_id: ProductId
    quantity: int
    status: str
    reason: str | None
    reservation_no: int | None
    unit_price_minor: int | None
    currency: str | None
    payment_method: str
    fingerprint: str
    partition: int
    source_offset: int
    source_index: int
    hold_ms: int | None
    trace_id: str | None
    traceparent: str | None

    @property
    def position(self) -> Position:
        """Where its request stands in the log."""
        return Position(self.partition, self.source_offset, self.source_index)


class Entry(Struct, frozen=True, gc=False):
    """A row as it is stored: its values, the state that the saga decided, and the effects of storing it.

    `published`: the highest version published before a restore.
    """

    row: Row
    published: int
    state: orders.Purchase
    effects: tuple[orders.Effect, ...]


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
                    self._outcome(decision, (partition, source_offset, index))
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

    def _outcome(self, decision: Reserved | Rejected, position: tuple[int, int, int]) -> None:
        known = self.rows.get(decision.purchase_id)
        if known is None or (known.status == "rejected" and isinstance(decision, Reserved)):
            self.rows[decision.purchase_id] = _row(decision, position)
        elif isinstance(decision, Reserved):
            self.again.append(_row(decision, position))


def entry_of(row: Row, published: int = 0, message: orders.NewRowMessage | None = None) -> Entry:
    """Let the saga decide how a row is stored; see `orders.outcome`."""
    order = order_of(row) if row.status == "reserved" else None
    return Entry(row, published, *orders.outcome(order, published, message))


def order_of(row: Row) -> orders.Order:
    """The order behind a reserved row."""
    assert row.reservation_no is not None
    assert row.unit_price_minor is not None
    assert row.currency is not None
    return orders.Order(
        row.purchase_id,
        row.buyer_id,
        row.product_id,
        row.quantity,
        row.position,
        row.reservation_no,
        row.unit_price_minor,
        row.currency,
        row.payment_method,
        row.traceparent,
    )


def _row(decision: Reserved | Rejected, position: tuple[int, int, int]) -> Row:
    trace = decision.traceparent
    known = trace is not None and len(trace) == _TRACEPARENT_LENGTH
    recorded = trace if known and trace is not None and trace[-1] in "13579bdf" else None
    reserved = decision if isinstance(decision, Reserved) else None
    return Row(
        decision.purchase_id,
        decision.buyer_id,
        decision.product_id,
        decision.quantity,
        "reserved" if reserved else "rejected",
        decision.reason if isinstance(decision, Rejected) else None,
        reserved.reservation_no if reserved else None,
        reserved.unit_price_minor if reserved else None,
        reserved.currency if reserved else None,
        decision.payment_method,
        decision.fingerprint,
        *position,
        reserved.hold_ms if reserved else None,
        trace[3:35] if known and trace is not None else None,
        recorded,
    )
