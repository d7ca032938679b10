"""However the log is cut into batches, the rows and the stock are the same."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from order_writer.saga.decision_batch import Batch, Row
from order_writer.saga.orders import Message
from stampede_schemas.decisions import AnyDecision, Rejected, Reserved
from stampede_schemas.identifiers import Position, PurchaseId
from tests.support.builders.orders import listed, rejected, released, reserved, restocked

IDS = st.sampled_from(["p1", "p2", "p3"])
DECISIONS: st.SearchStrategy[AnyDecision] = st.one_of(
    st.builds(reserved, IDS, st.integers(1, 99), available=st.integers(0, 9)),
    st.builds(rejected, IDS),
    st.builds(released, IDS, st.builds(Position, st.just(0), st.integers(0, 5), st.integers(0, 3))),
    st.builds(listed, stock=st.integers(0, 9)),
    st.builds(restocked, quantity=st.integers(1, 9)),
)
RECORDS = st.lists(st.lists(DECISIONS, max_size=4), max_size=8)


class Written(NamedTuple):
    """What the database keeps: rows, reservations that found another row, messages to the saga, (stock, available)."""

    rows: dict[PurchaseId, Row]
    again: set[Row]
    messages: list[tuple[PurchaseId, Message]]
    stock: tuple[int, int]


def written(records: list[list[AnyDecision]], size: int) -> Written:
    """After batches of `size` records. A row replaces none or a rejected one, as in `decisions.INSERT_PURCHASES`."""
    rows: dict[PurchaseId, Row] = {}
    again: set[Row] = set()
    messages: list[tuple[PurchaseId, Message]] = []
    stock = available = 0
    for start in range(0, len(records), size):
        batch = Batch()
        for offset, decisions in enumerate(records[start : start + size], start):
            batch.add(0, offset, decisions)
        again |= set(batch.again)
        for purchase_id, row in batch.rows.items():
            known = rows.get(purchase_id)
            if known is None or (known.status, row.status) == ("rejected", "reserved"):
                rows[purchase_id] = row
            elif row.status == "reserved":
                again.add(row)
        messages += batch.later
        for change in batch.stocks.values():
            stock = (change.whole.stock if change.whole else stock) + change.added
            available = change.available
    return Written(rows, again, messages, (stock, available))


@given(RECORDS, st.integers(1, 8))
def test_batches_do_not_matter(records: list[list[AnyDecision]], size: int) -> None:
    """Equal rows, repeated reservations, messages to the saga and stock as record by record."""
    assert written(records, size) == written(records, 1)


@given(RECORDS)
def test_every_row_is_the_first_reservation_or_else_the_first_rejection(records: list[list[AnyDecision]]) -> None:
    """No reservation is forgotten: each holds its row, or was compared with the one that does."""
    placed = [
        (decision, Position(0, offset, index))
        for offset, decisions in enumerate(records)
        for index, decision in enumerate(decisions)
        if isinstance(decision, Reserved | Rejected)
    ]
    outcomes = sorted(placed, key=lambda one: (isinstance(one[0], Rejected), one[1]))
    first: dict[PurchaseId, tuple[str, Position]] = {}
    for decision, position in outcomes:
        first.setdefault(decision.purchase_id, (type(decision).__name__.lower(), position))
    found = written(records, 3)
    assert {name: (row.status, row.position) for name, row in found.rows.items()} == first
    held = {row.position for row in found.rows.values() if row.status == "reserved"}
    assert {position for decision, position in placed if isinstance(decision, Reserved)} == held | {
        row.position for row in found.again
    }
