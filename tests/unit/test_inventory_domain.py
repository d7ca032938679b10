"""The rules of stock: given some requests were answered, when another is asked, then this is the answer."""

import pytest
from msgspec.structs import replace

from inventory.domain import FoldBroken, decide, evolve
from inventory.table import OPERATOR_REQUESTS_MAX
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
from stampede_schemas.identifiers import STOCK_MAX, BuyerId, Millis, Position, PurchaseId
from stampede_schemas.requests import AnyRequest
from tests.support.builders.decided import given, refused
from tests.support.builders.requests import ELSEWHERE, LAMP, MUG, change, listing, purchase, release, restock, retire

# ---- purchases


def test_a_purchase_takes_units_at_the_present_price() -> None:
    """Everything that later readers need is in the decision."""
    decision = given(listing(stock=3)).when(purchase(quantity=2))
    assert isinstance(decision, Reserved)
    assert (decision.available_after, decision.reservation_no, decision.unit_price_minor) == (1, 1, 500)
    assert (decision.currency, decision.hold_ms, decision.payment_method, decision.fingerprint) == (
        "EUR", 60_000, "card", "f",
    )  # fmt: skip


def test_the_last_unit_is_sold_once() -> None:
    """One left: the first takes it, the next hears sold_out."""
    sale = given(listing(stock=1))
    assert isinstance(sale.when(purchase("a", "ann")), Reserved)
    assert refused(sale.when(purchase("b", "bob"))) == ("sold_out", 0)


def test_a_purchase_larger_than_what_is_left_fails_and_a_smaller_later_one_wins() -> None:
    """Partial fits take nothing."""
    sale = given(listing(stock=3, limit=3), purchase("a", "ann", 2))
    assert refused(sale.when(purchase("b", "bob", 2))) == ("not_enough_left", 1)
    assert isinstance(sale.when(purchase("c", "cid", 1)), Reserved)


def test_the_buyer_limit_counts_live_units_of_one_product() -> None:
    """Up to the limit, over several purchases; other products and released units do not count."""
    sale = given(listing(stock=9, limit=2), listing(MUG, 9, 2, "list-2"), purchase("a", quantity=1))
    assert refused(sale.when(purchase("b", quantity=2))) == ("buyer_limit", 8)
    assert isinstance(sale.when(purchase("c", quantity=1)), Reserved)
    assert refused(sale.when(purchase("d", quantity=1))) == ("buyer_limit", 7)
    assert isinstance(sale.when(purchase("e", quantity=2, product=MUG)), Reserved)
    assert isinstance(sale.when(release((2, 0), "a")), Released)
    assert isinstance(sale.when(purchase("f", quantity=1)), Reserved)


@pytest.mark.parametrize(
    ("at_ms", "reason"), [(99, "not_open"), (100, None), (199, None), (200, "closed"), (201, "closed")]
)
def test_the_window_includes_its_beginning_and_not_its_end(at_ms: int, reason: str | None) -> None:
    """`[opens_at_ms, closes_at_ms)`, by the broker's clock."""
    decision = given(listing(opens_at_ms=100, closes_at_ms=200)).when(purchase(), at_ms)
    assert (decision.reason if isinstance(decision, Rejected) else None) == reason


def test_an_unknown_product_is_refused_and_remembered() -> None:
    """The same purchase stays rejected when the product is listed later."""
    sale = given()
    assert refused(sale.when(purchase())) == ("unknown_product", 0)
    sale.when(listing())
    again = sale.when(purchase())
    assert isinstance(again, Ignored)
    assert (again.reason, again.of) == ("answered", Position(0, 0, 0))


@pytest.mark.parametrize(("action", "reason"), [("pause", "paused"), ("close", "closed")])
def test_a_paused_or_closed_product_is_opened_again(action: str, reason: str) -> None:
    """What is left stays as it was."""
    sale = given(listing(), change(action=action))
    assert refused(sale.when(purchase("a"))) == (reason, 3)
    sale.when(change("change-2", action="open"))
    assert isinstance(sale.when(purchase("b")), Reserved)


def test_a_product_of_another_partition_is_unreadable_here() -> None:
    """Whatever is asked of it."""
    assert given(listing()).when(purchase(product=ELSEWHERE)) == Unreadable(reason="wrong_partition")
    assert given().when(listing(ELSEWHERE)) == Unreadable(reason="wrong_partition")


# ---- releases


def test_a_release_gives_all_units_back_once() -> None:
    """The second one finds nothing held."""
    sale = given(listing(stock=2), purchase(quantity=2))
    released = sale.when(release((1, 0)))
    assert isinstance(released, Released)
    assert (released.quantity, released.available_after, released.reservation) == (2, 2, Position(0, 1, 0))
    assert sale.when(release((1, 0))) == Ignored(
        v=2, reason="not_held", product_id=LAMP, purchase_id=PurchaseId("buy-1")
    )


@pytest.mark.parametrize(
    "wrong",
    [
        release((1, 1)),
        release((2, 0)),
        release((1, 0), "buy-2"),
        release((1, 0), product=MUG),
        replace(release((1, 0)), reservation=Position(1, 1, 0)),
    ],
)
def test_a_release_must_name_purchase_product_and_position(wrong: AnyRequest) -> None:
    """Anything else holds nothing."""
    sale = given(listing(), purchase(), listing(MUG, request="list-2"))
    decision = sale.when(wrong)
    assert isinstance(decision, Ignored)
    assert decision.reason == "not_held"
    assert sale.table.products[LAMP].available == 2


def test_reservation_numbers_have_no_gaps_and_are_not_reused() -> None:
    """Released ones keep theirs."""
    sale = given(listing(), purchase("a", "ann"), release((1, 0), "a"))
    numbers = [sale.when(purchase(name, name)) for name in ("b", "c")]
    assert [d.reservation_no for d in numbers if isinstance(d, Reserved)] == [2, 3]


# ---- operators


def test_a_listing_is_said_once() -> None:
    """The same terms again are the same listing, whoever asks; other terms conflict; nothing changes."""
    sale = given(listing(stock=3))
    same, conflict = sale.when(listing(stock=3, request="x")), sale.when(listing(stock=4))
    assert isinstance(same, Ignored)
    assert isinstance(conflict, Ignored)
    assert (same.reason, conflict.reason) == ("same", "conflict")
    assert sale.table.products[LAMP].stock == 3


def test_a_listing_conflicts_with_what_was_listed_and_not_with_later_changes() -> None:
    """A repeated listing after a change is still the same one."""
    again = given(listing(price=500), change(unit_price_minor=900)).when(listing(price=500))
    assert isinstance(again, Ignored)
    assert again.reason == "same"


def test_a_restock_counts_once() -> None:
    """By its request id."""
    sale = given(listing(stock=1))
    assert sale.when(restock(4)) == Restocked(
        request_id=restock(4).request_id, product_id=LAMP, quantity=4, available_after=5
    )
    repeated = sale.when(restock(4))
    assert isinstance(repeated, Ignored)
    assert (repeated.reason, sale.table.products[LAMP].stock) == ("same", 5)


@pytest.mark.parametrize(("quantity", "reason"), [(-2, None), (-3, "below_zero"), (STOCK_MAX, "too_many")])
def test_a_restock_stays_within_its_limits(quantity: int, reason: str | None) -> None:
    """Reserved units cannot be taken away; the refusal is remembered too."""
    sale = given(listing(stock=3), purchase())
    decision = sale.when(restock(quantity))
    assert (decision.reason if isinstance(decision, RestockRejected) else None) == reason
    assert sale.table.products[LAMP].available == (0 if reason is None else 2)
    repeated = sale.when(restock(quantity))
    assert isinstance(repeated, Ignored)
    assert repeated.reason == "same"


def test_a_restock_may_fill_up_to_the_limit_of_stock() -> None:
    """To the unit."""
    assert isinstance(given(listing(stock=1)).when(restock(STOCK_MAX - 1)), Restocked)
    assert isinstance(given(listing(stock=2)).when(restock(STOCK_MAX - 1)), RestockRejected)


def test_what_is_asked_of_an_unknown_product_is_said_to_be_unknown() -> None:
    """Each kind of request in its own words."""
    unknown = given().when(restock(1))
    assert isinstance(unknown, RestockRejected)
    assert unknown.reason == "unknown_product"
    for request in (change(), retire()):
        decision = given().when(request)
        assert isinstance(decision, Ignored)
        assert decision.reason == "unknown_product"


def test_a_change_touches_what_it_names() -> None:
    """The decision is the whole product; what is reserved keeps its price."""
    sale = given(listing(stock=3, limit=1, opens_at_ms=5), purchase())
    changed = sale.when(change(unit_price_minor=900, per_buyer_limit=3, hold_ms=7, closes_at_ms=Millis(2_000)))
    assert isinstance(changed, ProductChanged)
    assert (changed.unit_price_minor, changed.per_buyer_limit, changed.hold_ms) == (900, 3, 7)
    assert (changed.opens_at_ms, changed.closes_at_ms, changed.status, changed.stock) == (5, 2_000, "open", 3)
    bought = sale.when(purchase("b", quantity=2))
    assert isinstance(bought, Reserved)
    assert (bought.unit_price_minor, bought.hold_ms) == (900, 7)
    repeated = sale.when(change(unit_price_minor=1))
    assert isinstance(repeated, Ignored)
    assert repeated.reason == "same"


def test_a_retired_product_is_closed_for_good() -> None:
    """Nothing sells, nothing is released, nothing opens it again; its reservations are forgotten."""
    sale = given(listing(stock=3), purchase())
    assert isinstance(sale.when(retire()), ProductRetired)
    assert not sale.table.purchases
    for request, reason in (
        (release((1, 0)), "not_held"),
        (restock(1), "retired"),
        (purchase("b", "bob"), "retired"),
        (change("change-2", action="open"), "retired"),
        (retire("retire-2"), "same"),
        (listing(stock=3), "same"),
    ):
        decision = sale.when(request)
        assert isinstance(decision, Ignored)
        assert decision.reason == reason


def test_retiring_one_product_leaves_the_others_reservations() -> None:
    """Only its own are forgotten."""
    sale = given(listing(), listing(MUG, request="list-2"), purchase("a"), purchase("b", product=MUG), retire())
    assert set(sale.table.purchases) == {"b"}
    assert isinstance(sale.when(release((3, 0), "b", MUG)), Released)


def test_the_last_thousand_operator_requests_are_remembered() -> None:
    """The oldest is forgotten first, and may then be asked again."""
    sale = given(listing(stock=0), *(restock(1, f"r{n}") for n in range(OPERATOR_REQUESTS_MAX)))
    assert len(sale.table.products[LAMP].answered) == OPERATOR_REQUESTS_MAX
    assert isinstance(sale.when(restock(1, "r0")), Ignored)
    assert isinstance(sale.when(restock(1, "new")), Restocked)
    assert isinstance(sale.when(restock(1, "r0")), Restocked)


# ---- the fold stops at what cannot be


def reserved(**other: object) -> Reserved:
    """The decision on one unit of a product of which 3 are left."""
    decision = decide(given(listing(stock=3)).table, purchase(), Millis(0))
    assert isinstance(decision, Reserved)
    return replace(decision, **other)


@pytest.mark.parametrize(
    "decision",
    [
        reserved(available_after=3),
        reserved(quantity=4, available_after=-1),
        reserved(product_id=MUG),
        Released(
            purchase_id=PurchaseId("never"), buyer_id=BuyerId("ann"), product_id=LAMP, quantity=1,
            payment_method="card", fingerprint="f", available_after=4, reservation=Position(0, 0, 0),
            reason="cancelled",
        ),
        Restocked(request_id=restock(1).request_id, product_id=LAMP, quantity=1, available_after=3),
    ],
)  # fmt: skip
def test_a_decision_that_does_not_fit_stops_the_fold(decision: AnyDecision) -> None:
    """A forked or edited log is found, not folded."""
    with pytest.raises(FoldBroken):
        evolve(given(listing(stock=3)).table, decision, Position(0, 1, 0))


def test_a_listing_gives_the_whole_product() -> None:
    """All fields, open, with everything available."""
    listed = given().when(listing(stock=7))
    assert isinstance(listed, ProductListed)
    assert (listed.stock, listed.available_after, listed.status, listed.name) == (7, 7, "open", "Lamp")
