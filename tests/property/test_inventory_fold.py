"""Whatever is asked in whatever order: stock is conserved, and a table is what its decisions make it, by any way."""

from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from inventory.domain import decide, evolve
from inventory.table import (
    SLICE_BYTES_MAX,
    SLICE_WEIGHT_MAX,
    StockTable,
    decode_slice,
    encode_slice,
    encoded,
    join,
    slices,
)
from stampede_schemas.codec import decode_decisions
from stampede_schemas.decisions import AnyDecision, Envelope, Reserved
from stampede_schemas.identifiers import BuyerId, Millis, Position, WriterEpoch
from stampede_schemas.requests import AnyRequest, ReleaseRequested
from stampede_schemas.topics import MESSAGE_BYTES_MAX
from tests.simulation.other_rules import thrifty
from tests.support.builders.requests import ELSEWHERE, LAMP, MUG, change, listing, purchase, release, restock, retire

Rules = Callable[[StockTable, AnyRequest, Millis], AnyDecision]
Asked = list[tuple[AnyRequest, int]]

products = st.sampled_from([LAMP, LAMP, LAMP, MUG, ELSEWHERE])
names = st.sampled_from([f"b{n}" for n in range(4)])
ids = st.sampled_from([f"r{n}" for n in range(6)])
instants = st.integers(0, 40)
bodies = st.sampled_from(["f", "f", "g", "0123456789abcdef0", "0123456789abcdef1"])
purchases = st.builds(purchase, names, st.sampled_from(["ann", "bob", "cid"]), st.integers(1, 2), products, bodies)
generations = st.sampled_from([1, 2, 250_000])
releases = st.builds(release, st.tuples(st.integers(0, 40), st.just(0)), names, products)
operator = st.one_of(
    st.builds(restock, st.integers(-4, 6), ids, products),
    st.builds(listing, products, st.integers(0, 6), st.integers(1, 4), ids),
    st.builds(
        change,
        ids,
        products,
        action=st.sampled_from(["open", "open", "close", "pause", None]),
        per_buyer_limit=st.one_of(st.none(), st.integers(1, 4)),
        opens_at_ms=st.one_of(st.none(), instants),
        closes_at_ms=st.one_of(st.none(), instants),
    ),
    st.builds(retire, ids, products),
)
requests = st.one_of(purchases, releases, purchases, releases, purchases, operator)
histories = st.lists(st.tuples(requests, instants), min_size=4, max_size=40).map(
    lambda asked: [(listing(stock=5), 0), *asked]
)
rule_sets = st.sampled_from([decide, thrifty])


def sell(asked: Asked, rules: Rules, table: StockTable | None = None, start: int = 0) -> list[AnyDecision]:
    """Decide and apply, one request at each offset. A purchase is released where it was really made, if at all."""
    table = table or StockTable(0)
    said = []
    for offset, (request, at_ms) in enumerate(asked, start):
        decision = rules(table, aim(table, request), Millis(at_ms))
        evolve(table, decision, Position(0, offset, 0))
        said.append(decision)
    return said


def aim(table: StockTable, request: AnyRequest) -> AnyRequest:
    """Releases would hardly ever hit a reservation by chance: every even offset names the right one."""
    if not isinstance(request, ReleaseRequested) or request.reservation.offset % 2:
        return request
    held = table.purchases.get(request.purchase_id)
    if held is None:
        return request
    return replace(request, product_id=held.product_id, reservation=Position(0, held.offset, held.index))


@given(histories, rule_sets)
def test_stock_is_conserved_at_every_prefix(asked: Asked, rules: Rules) -> None:
    """Available and what buyers hold add up to the stock; nothing is below zero; numbers count without gaps."""
    table = StockTable(0)
    numbers: dict[str, list[int]] = {}
    for offset, request in enumerate(asked):
        (decision,) = sell([request], rules, table, offset)
        if isinstance(decision, Reserved):
            numbers.setdefault(decision.product_id, []).append(decision.reservation_no)
        for name, product in table.products.items():
            assert product.available >= 0
            assert product.available + product.reserved == product.stock
            if product.status == "retired":
                continue
            live = [held for held in table.purchases.values() if held.live and held.product_id == name]
            assert product.reserved == sum(held.quantity for held in live)
            by_buyer: dict[str, int] = {}
            for held in live:
                by_buyer[held.buyer_id] = by_buyer.get(held.buyer_id, 0) + held.quantity
            assert product.held_by == by_buyer
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())


@given(histories, requests, instants, rule_sets)
def test_deciding_changes_nothing_and_says_the_same_again(
    asked: Asked, request: AnyRequest, at_ms: int, rules: Rules
) -> None:
    """A decision is a function of table, request and instant."""
    table = StockTable(0)
    sell(asked, rules, table)
    before = table.digest()
    assert rules(table, request, Millis(at_ms)) == rules(table, request, Millis(at_ms))
    assert table.digest() == before


@given(histories, rule_sets, generations)
def test_a_table_is_the_fold_of_its_decisions(asked: Asked, rules: Rules, generation: int) -> None:
    """Decisions of any rules, read back from their bytes, fold without refusal into the same table."""
    table, folded = StockTable(0, generation=generation), StockTable(0, generation=generation)
    said = sell(asked, rules, table)
    envelope = Envelope(0, 0, WriterEpoch(""), 0, Millis(0), Raw(msgspec.json.encode(said)))
    for offset, decision in enumerate(decode_decisions(envelope)):
        evolve(folded, decision, Position(0, offset, 0))
    assert folded.digest() == table.digest()


@given(histories, histories, rule_sets, generations)
@settings(max_examples=60)
def test_a_table_cut_and_joined_goes_on_as_before(asked: Asked, later: Asked, rules: Rules, generation: int) -> None:
    """Snapshot, load, go on: the same answers as without the break."""
    table = StockTable(0, generation=generation)
    sell(asked, rules, table)
    joined = join(0, iter([decode_slice(encode_slice(piece)) for piece in slices(table)]), generation)
    assert joined.digest() == table.digest()
    assert sell(later, rules, joined, len(asked)) == sell(later, rules, table, len(asked))
    assert joined.digest() == table.digest()


def test_pieces_are_small_in_bytes_whatever_is_in_them() -> None:
    """Legal purchases of 700 bytes in characters of four: 2,000 of them were more than a record may hold."""
    wide = "\N{ARTIST PALETTE}" * 64
    asked: Asked = [(listing(stock=10_000, limit=1_000), 0)]
    asked += [
        (replace(purchase(f"{n}", f"{n % 50}"), buyer_id=BuyerId(f"{n % 50}{wide}"), fingerprint=wide), 0)
        for n in range(3 * SLICE_WEIGHT_MAX)
    ]
    table = StockTable(0)
    sell(asked, decide, table)
    pieces = [value for piece in slices(table) for value in encoded(piece)]
    assert max(len(encode_slice(piece)) for piece in slices(table)) > MESSAGE_BYTES_MAX
    assert max(map(len, pieces)) <= SLICE_BYTES_MAX
    assert join(0, map(decode_slice, pieces)).digest() == table.digest()


def test_a_large_table_is_cut_into_small_pieces() -> None:
    """No piece holds more than 2,000 entries, however many buyers a product has."""
    asked: Asked = [(listing(stock=10_000), 0)]
    asked += [(purchase(f"b{n}", f"u{n % 3_000}"), 0) for n in range(2 * SLICE_WEIGHT_MAX + 1)]
    table = StockTable(0)
    sell(asked, decide, table)
    pieces = list(slices(table))
    assert len(pieces) == 1 + 3
    assert all(len(piece.purchases) <= SLICE_WEIGHT_MAX for piece in pieces)
    assert all(not product.held_by for piece in pieces for product in piece.products.values())
    assert join(0, iter(pieces)).digest() == table.digest()
