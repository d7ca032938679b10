"""What a gateway makes of the decisions and order events it reads."""

import msgspec

from gateway import views
from gateway.projection import OPENING_GRACE_MS, Projection, Purchase, refused_at_the_door
from stampede_schemas.decisions import AnyDecision, ProductChanged, Unreadable
from stampede_schemas.identifiers import Millis, Position, PurchaseId, RequestId
from tests.support.gateway import (
    LAMP,
    answered_before,
    confirmed,
    given_back,
    listed,
    rejected,
    released,
    reserved,
    restocked,
    wanted,
)

FIRST = Position(0, 1, 0)


def folded(*records: list[AnyDecision]) -> Projection:
    """A projection after these records of partition 0; the first answers request record 0."""
    projection = Projection()
    for source_offset, record in enumerate(records):
        projection.fold(0, source_offset, record)
    return projection


def status_of(projection: Projection, purchase: str = "buy") -> tuple[str, int]:
    """Status and version."""
    known = projection.purchase(purchase)
    assert known is not None
    return known.status, known.version


def test_availability_is_that_of_the_last_decision() -> None:
    """Whatever kind of decision it was."""
    projection = folded([listed(10)], [reserved("a", 9), reserved("b", 7, 2, 2)], [restocked(5, 12)])
    product = projection.products[LAMP]
    assert (product.stock, product.available, product.may_reopen) == (15, 12, True)
    projection.fold(0, 3, [released("a", FIRST, 13), Unreadable(reason="not_json")])
    assert product.available == 13


def test_a_sale_may_reopen_only_while_something_is_on_hold() -> None:
    """A confirmed unit does not come back by itself; a released one does."""
    projection = folded([listed(1)], [reserved("buy", 0)])
    product = projection.products[LAMP]
    assert product.sale_status(None) == "sold_out"
    assert product.may_reopen
    projection.fold_order(confirmed("buy", 2, FIRST))
    assert not product.may_reopen
    projection.fold_order(given_back("buy", 3, FIRST))
    assert product.may_reopen
    projection.fold(0, 2, [released("buy", FIRST, 1)])
    assert (product.sale_status(None), product.may_reopen) == ("open", False)


def test_a_purchase_goes_from_pending_to_its_outcome_and_names_its_position() -> None:
    """The acknowledgement first, the decision next, then the order event."""
    projection = folded([listed()])
    projection.accepted(wanted(), FIRST)
    assert status_of(projection) == ("pending", 0)
    assert projection.fold(0, 1, [reserved()]) == ["buy"]
    assert status_of(projection) == ("reserved", 1)
    projection.fold_order(confirmed(at=FIRST))
    known = projection.purchase("buy")
    assert known is not None
    assert (known.status, known.version, known.position, known.row_decides) == ("confirmed", 2, FIRST, False)


def test_a_decision_that_overtakes_the_acknowledgement_stays() -> None:
    """The tail may be faster than the delivery report."""
    projection = folded([listed()], [reserved()])
    projection.accepted(wanted(), FIRST)
    assert status_of(projection) == ("reserved", 1)


def test_versions_never_go_back() -> None:
    """Order events out of order, repeated, or before their decision."""
    projection = folded([listed()])
    projection.fold_order(given_back(version=3, at=FIRST))
    assert projection.fold_order(confirmed(version=2, at=FIRST)) == []
    assert projection.fold_order(given_back(version=3, at=FIRST)) == []
    projection.fold(0, 1, [reserved()])
    assert status_of(projection) == ("released", 3)
    known = projection.purchase("buy")
    assert known is not None
    assert known.fingerprint == "f"
    assert not known.row_decides


def test_several_duplicates_show_the_first_outcome() -> None:
    """Ignored changes nothing for a purchase whose answer was seen."""
    projection = folded([listed()], [reserved()], [answered_before("buy", FIRST)] * 3)
    assert status_of(projection) == ("reserved", 1)
    assert projection.products[LAMP].available == 9


def test_the_row_decides_about_an_answer_given_before_we_read() -> None:
    """A gateway that began later knows only that there is an answer, and where."""
    projection = folded([listed()], [answered_before("buy", Position(0, 0, 7))])
    known = projection.purchase("buy")
    assert known is not None
    assert known.row_decides
    row = Purchase(PurchaseId("buy"), known.buyer_id, LAMP, 1, "f", "released", 3, position=Position(0, 0, 7))
    assert projection.merge(row).status == "released"
    assert status_of(projection) == ("released", 3)


def test_the_row_decides_between_two_positions() -> None:
    """Rejected and logged again after the fold forgot it: only one of the two holds."""
    projection = folded([listed()], [rejected()], [reserved()])
    known = projection.purchase("buy")
    assert known is not None
    assert known.row_decides
    assert known.status == "rejected"


def test_the_row_decides_where_only_the_second_of_two_positions_was_seen() -> None:
    """The units of the second go back because the purchase was decided before: what it held was not what was bought."""
    back = msgspec.structs.replace(released("buy", FIRST, 10), reason="already_decided")
    known = folded([listed()], [reserved()], [back]).purchase("buy")
    assert known is not None
    assert known.row_decides
    known = folded([listed()], [reserved()], [released("buy", FIRST, 10)]).purchase("buy")
    assert known is not None
    assert not known.row_decides


def test_an_older_row_does_not_undo_what_is_known() -> None:
    """The row is read while an event is already here."""
    projection = folded([listed()], [reserved()])
    projection.fold_order(confirmed(at=FIRST))
    projection.merge(Purchase(PurchaseId("buy"), status="reserved", version=1, position=FIRST))
    assert status_of(projection) == ("confirmed", 2)


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    """What was touched last stays."""
    projection = Projection(purchases_max=3)
    for name in "abc":
        projection.accepted(wanted(name), FIRST)
    projection.fold(0, 1, [reserved("a")])
    projection.accepted(wanted("d"), FIRST)
    assert projection.purchase("b") is None
    assert projection.purchase("a") is not None


def test_an_operators_request_keeps_its_first_outcome() -> None:
    """A repeat is Ignored by the log; the caller is told what the first one did."""
    projection = folded([listed(3)], [restocked(2, 5)])
    first = projection.outcome("more")
    assert projection.fold(0, 2, [restocked(2, 7)]) == ["more"]
    assert projection.outcome("more") is first


def test_a_change_keeps_the_confirmed_units() -> None:
    """Changing the price does not make sold units come back."""
    projection = folded([listed(1)], [reserved(left=0)])
    projection.fold_order(confirmed(at=FIRST))
    before = listed(1)
    changed = ProductChanged(
        request_id=RequestId("change"),
        product_id=LAMP,
        name=before.name,
        unit_price_minor=700,
        currency="EUR",
        stock=1,
        per_buyer_limit=1,
        hold_ms=1,
        status="paused",
        available_after=0,
    )
    projection.fold(0, 2, [changed])
    product = projection.products[LAMP]
    assert (product.unit_price_minor, product.may_reopen, product.sale_status(None)) == (700, False, "paused")


def test_the_door_refuses_only_what_is_sure() -> None:
    """Sold out at zero, not open well before the opening; unknown time or a last unit goes to the log."""
    product = folded([listed(1, opens_at_ms=10_000)]).products[LAMP]
    assert refused_at_the_door(product, None) is None
    assert refused_at_the_door(product, 10_000 - OPENING_GRACE_MS) is None
    assert refused_at_the_door(product, 10_000 - OPENING_GRACE_MS - 1) == "not-open"
    product.closes_at_ms = 20_000
    assert refused_at_the_door(product, 19_999) is None
    assert refused_at_the_door(product, 20_000) == "not-open"
    product.available = 0
    assert refused_at_the_door(product, 15_000) == "sold-out"
    product.status = "paused"
    assert refused_at_the_door(product, 15_000) == "not-open"


def test_a_hold_is_shown_while_it_lasts() -> None:
    """One gateway knows a confirmed purchase by its event, another by its row: both show the same."""
    projection = folded([listed(10)], [reserved()])
    row = Purchase(PurchaseId("buy"), status="reserved", version=1, hold_until_ms=Millis(60_000))
    assert views.purchase_fields(projection.merge(row))["hold_until"] == "1970-01-01T00:01:00.000Z"
    for status, version in (("confirmed", 2), ("released", 3)):
        by_event = folded([listed(10)], [reserved()])
        by_event.fold_order(confirmed() if status == "confirmed" else given_back())
        known = by_event.purchase("buy")
        assert known is not None
        assert (known.status, known.version) == (status, version)
        by_row = Purchase(PurchaseId("buy"), status=known.status, version=version, hold_until_ms=Millis(60_000))
        assert [views.purchase_fields(one)["hold_until"] for one in (known, by_row)] == [None, None]
