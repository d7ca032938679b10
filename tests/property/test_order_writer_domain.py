"""However the log is cut into batches, the rows and the stock are the same."""

from hypothesis import given
from hypothesis import strategies as st

from order_writer.domain import Batch, Row, conflict
from order_writer.saga import Message
from stampede_schemas.decisions import AnyDecision, Rejected, Reserved
from stampede_schemas.identifiers import Position, PurchaseId
from tests.support.orders import listed, rejected, released, reserved, restocked

IDS = st.sampled_from(["p1", "p2", "p3"])
DECISIONS: st.SearchStrategy[AnyDecision] = st.one_of(
    st.builds(reserved, IDS, st.integers(1, 99), available=st.integers(0, 9)),
    st.builds(rejected, IDS),
    st.builds(released, IDS, st.builds(Position, st.just(0), st.integers(0, 5), st.integers(0, 3))),
    st.builds(listed, stock=st.integers(0, 9)),
    st.builds(restocked, quantity=st.integers(1, 9)),
)
RECORDS = st.lists(st.lists(DECISIONS, max_size=4), max_size=8)


def written(
    records: list[list[AnyDecision]], size: int
) -> tuple[dict[PurchaseId, Row], list[tuple[PurchaseId, Message]], tuple[int, int]]:
    """Rows, what the saga hears, and (stock, available) after batches of `size` records, as the database keeps them."""
    rows: dict[PurchaseId, Row] = {}
    heard: list[tuple[PurchaseId, Message]] = []
    stock = available = 0
    for start in range(0, len(records), size):
        batch = Batch()
        for offset, decisions in enumerate(records[start : start + size], start):
            batch.add(0, offset, decisions)
        again = [conflict(row) for purchase_id, row in batch.rows.items() if purchase_id in rows]
        heard += [told for told in again if told] + batch.later
        rows = batch.rows | rows
        for change in batch.stocks.values():
            stock = (change.whole.stock if change.whole else stock) + change.added
            available = change.available
    return rows, heard, (stock, available)


@given(RECORDS, st.integers(1, 8))
def test_batches_do_not_matter(records: list[list[AnyDecision]], size: int) -> None:
    """Equal rows and stock as record by record; the saga hears the same, if not in the same order between purchases."""
    rows, heard, stock = written(records, size)
    one_by_one = written(records, 1)
    assert (rows, stock) == (one_by_one[0], one_by_one[2])
    assert sorted(map(repr, heard)) == sorted(map(repr, one_by_one[1]))


@given(RECORDS)
def test_every_reservation_is_a_row_or_is_told_to_the_saga(records: list[list[AnyDecision]]) -> None:
    """No stock is forgotten: each Reserved holds a row, or will be given back."""
    rows, heard, _ = written(records, 3)
    total = sum(isinstance(decision, Reserved) for decisions in records for decision in decisions)
    told = sum(type(message).__name__ == "ReservedAgain" for _, message in heard)
    assert total == told + sum(row.status == "reserved" for row in rows.values())
    firsts = {d.purchase_id for ds in records for d in ds if isinstance(d, Reserved | Rejected)}
    assert rows.keys() == firsts
