"""What a gateway makes of the decisions and order events it reads."""

import msgspec

from gateway.api import views
from gateway.read_side.projection import Projection
from gateway.read_side.purchase_memory import accepted
from gateway.read_side.purchase_state import Answered, Ordered, Reserved
from stampede_schemas.decisions import ProductChanged, Unreadable
from stampede_schemas.identifiers import BuyerId, Millis, Position, PurchaseId, RequestId
from tests.support.builders.gateway import (
    LAMP,
    answered_before,
    confirmed,
    folded,
    given_back,
    listed,
    rejected,
    released,
    reserved,
    restocked,
    wanted,
)

FIRST = Position(0, 1, 0)
BODY = PurchaseId("buy"), BuyerId("ann"), LAMP, 1, "f"


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
    projection.fold_order(confirmed("buy", 3, FIRST))
    assert not product.may_reopen
    projection.fold_order(given_back("buy", 4, FIRST))
    assert product.may_reopen
    projection.fold(0, 2, [released("buy", FIRST, 1)])
    assert (product.sale_status(None), product.may_reopen) == ("open", False)


def test_a_purchase_goes_from_pending_to_its_outcome_and_names_its_position() -> None:
    """The acknowledgement first, the decision next, then the order event."""
    projection = folded([listed()])
    projection.memory.accepted(accepted(wanted(), FIRST, 0.0))
    assert status_of(projection) == ("pending", 0)
    assert projection.fold(0, 1, [reserved()]) == ["buy"]
    assert status_of(projection) == ("reserved", 2)
    projection.fold_order(confirmed(at=FIRST))
    known = projection.purchase("buy")
    assert known is not None
    assert (known.status, known.version, known.position, known.fingerprint) == ("confirmed", 3, FIRST, "f")


def test_versions_never_go_back() -> None:
    """Order events out of order, repeated, or before their decision."""
    projection = folded([listed()])
    projection.fold_order(given_back(at=FIRST))
    assert projection.fold_order(confirmed(at=FIRST)) == []
    assert projection.fold_order(given_back(at=FIRST)) == []
    projection.fold(0, 1, [reserved()])
    assert status_of(projection) == ("released", 4)
    known = projection.purchase("buy")
    assert known is not None
    assert known.fingerprint == "f"


def test_several_duplicates_show_the_first_outcome() -> None:
    """Ignored changes nothing for a purchase whose answer was seen."""
    projection = folded([listed()], [reserved()], [answered_before("buy", FIRST)] * 3)
    assert status_of(projection) == ("reserved", 2)
    assert projection.products[LAMP].available == 9


def test_the_row_tells_of_an_answer_that_was_given_before_this_memory() -> None:
    """A gateway that began later knows only that there is an answer, and where."""
    projection = folded([listed()], [answered_before("buy", Position(0, 0, 7))])
    assert isinstance(projection.purchase("buy"), Answered)
    row = Ordered(*BODY, Position(0, 0, 7), None, "released", 4, "cancelled", 1, 500, "EUR", "none", Millis(1))
    projection.memory.merge(row)
    assert status_of(projection) == ("released", 4)


def test_a_rejection_that_the_fold_forgot_gives_way_to_the_reservation() -> None:
    """Version 1, then version 2: the fold may decide anew, and then the reservation counts."""
    projection = folded([listed()], [rejected()])
    assert status_of(projection) == ("rejected", 1)
    projection.fold(0, 2, [reserved()])
    assert status_of(projection) == ("reserved", 2)


def test_a_retired_product_gives_no_outcome() -> None:
    """The fold has forgotten whether there was one."""
    retired = msgspec.structs.replace(answered_before("buy", FIRST), reason="retired", of=None)
    projection = folded([listed()])
    assert projection.fold(0, 1, [retired]) == ["buy"]
    known = projection.purchase("buy")
    assert isinstance(known, Answered)
    assert known.retired


def test_a_release_of_what_is_not_held_says_nothing_about_the_purchase() -> None:
    """It names the purchase, and no answer."""
    not_held = msgspec.structs.replace(answered_before("buy", FIRST), reason="not_held", of=None)
    projection = folded([listed()], [not_held])
    assert projection.purchase("buy") is None


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


def test_a_hold_is_shown_while_it_lasts() -> None:
    """One gateway knows a confirmed purchase by its event, another by its row: both show the same."""
    projection = folded([listed(10)], [reserved()])
    row = Reserved(*BODY, FIRST, None, 1, 500, "EUR", Millis(1), Millis(60_000))
    assert views.purchase_state(projection.memory.merge(row)).hold_until == "1970-01-01T00:01:00.000Z"
    for event in (confirmed(at=FIRST), given_back(at=FIRST)):
        by_event = folded([listed(10)], [reserved()])
        by_event.fold_order(event)
        known = by_event.purchase("buy")
        assert known is not None
        assert (known.status, views.purchase_state(known).hold_until) == (event.status, None)
