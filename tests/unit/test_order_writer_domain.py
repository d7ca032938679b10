"""From decisions to one transaction: what a batch keeps, and in which order."""

from order_writer.consume.quarantine import placeholder_of
from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch, entry_of
from stampede_schemas.decisions import Ignored, Restocked, Unreadable
from stampede_schemas.identifiers import Position, ProductId, PurchaseId, RequestId
from tests.support.builders.orders import TRACEPARENT, listed, rejected, released, reserved


def test_a_purchase_has_one_row_its_first_reservation_or_else_its_first_rejection() -> None:
    """Whatever comes before the reservation or after it; a further reservation is kept to be compared with the row."""
    batch = Batch()
    batch.add(0, 7, [rejected("p1"), reserved("p2", 1), rejected("p2"), rejected("p3"), rejected("p3")])
    batch.add(0, 8, [rejected("p1"), reserved("p1", 2), rejected("p1")])
    batch.add(4, 2, [reserved("p1", 1, product_id="sock")])
    assert {p: (row.status, row.position) for p, row in batch.rows.items()} == {
        "p1": ("reserved", Position(0, 8, 1)),
        "p2": ("reserved", Position(0, 7, 1)),
        "p3": ("rejected", Position(0, 7, 3)),
    }
    assert [(row.purchase_id, row.position) for row in batch.again] == [("p1", Position(4, 2, 0))]
    assert batch.later == []
    assert batch.decisions == 9


def test_a_row_carries_the_position_of_its_request() -> None:
    """Partition, offset of the request record, index within it; trace only where it is recorded."""
    batch = Batch()
    batch.add(3, 41, [Unreadable(reason="not_json"), reserved("p1", 9, traceparent=TRACEPARENT)])
    batch.add(3, 42, [reserved("p2", 10, traceparent=TRACEPARENT[:-1] + "0"), reserved("p3", 11, traceparent="junk")])
    row = batch.rows[PurchaseId("p1")]
    assert (row.position, row.traceparent) == (Position(3, 41, 1), TRACEPARENT)
    assert entry_of(row).values() == (
        "p1", "buyer-of-p1", "shoe", 2, "reserved", None, 9, 4_200, "EUR", "ok", "f" * 16, 3, 41, 1, 60_000,
        TRACEPARENT[3:35], TRACEPARENT, 2,
    )  # fmt: skip
    unsampled, junk = (entry_of(batch.rows[PurchaseId(name)]).values() for name in ("p2", "p3"))
    assert unsampled[-3:-1] == (TRACEPARENT[3:35], None)
    assert junk[-3:-1] == (None, None)


def test_a_placeholder_holds_neither_number_nor_price() -> None:
    """They are what Postgres may have refused; how it ended is the saga's decision."""
    batch = Batch()
    batch.add(3, 41, [reserved("p1", 9, traceparent=TRACEPARENT), rejected("p2", method="o\0k")])
    held, no = (placeholder_of(entry_of(row, 0, orders.NothingToPay())).values() for row in batch.rows.values())
    assert held[3:] == (1, "released", "row_error", None, None, None, "", "f" * 16, 3, 41, 0, None, None, None, 3)
    assert no[3:] == (1, "rejected", "sold_out", None, None, None, "", "f" * 16, 3, 41, 1, None, None, None, 1)


def test_releases_are_handled_after_all_rows() -> None:
    """In the order of the log, so that a purchase reserved and released in one batch ends released."""
    batch = Batch()
    batch.add(0, 0, [reserved("p1", 1), released("p1", Position(0, 0, 0), reason="cancelled")])
    assert list(batch.rows) == ["p1"]
    assert batch.later == [("p1", orders.StockReleased(Position(0, 0, 0), "cancelled"))]


def test_stock_is_what_the_last_decision_left() -> None:
    """A listing starts anew, restocks add up, and an unknown product is nobody's stock."""
    batch = Batch()
    restock = Restocked(request_id=RequestId("r"), product_id=ProductId("shoe"), quantity=5, available_after=103)
    batch.add(0, 0, [listed(stock=100), reserved("p1", 1, available=98), restock])
    batch.add(0, 1, [rejected("p2", product_id="ghost", reason="unknown_product")])
    batch.add(0, 2, [Ignored(v=2, reason="same", product_id=ProductId("shoe")), reserved("p3", 2, available=101)])
    [stock] = batch.stocks.values()
    assert (stock.added, stock.available, stock.source_offset) == (5, 101, 2)
    assert stock.whole is not None
