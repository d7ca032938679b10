"""The saga's rules, one by one: given a purchase, when a message comes, then these effects."""

import pytest
from msgspec.structs import replace

from order_writer.saga.orders import (
    CancelAsked,
    Confirmed,
    ConfirmReturn,
    Effect,
    HoldExpired,
    KeepApproval,
    KeepCapture,
    Message,
    NothingToPay,
    PaymentApproved,
    PaymentDeclined,
    PaymentVoided,
    Purchase,
    Refuse,
    Rejected,
    Released,
    RequestRelease,
    Reserved,
    RowRefused,
    StockReleased,
    Transition,
    Void,
    outcome,
    react,
)
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import ReleaseReason
from tests.support.builders.orders import order

ORDER = order()
HELD = Reserved(ORDER)
SOLD = Confirmed(ORDER, 3)
GONE = Released(ORDER, 3, "payment_declined", "none", returned=False)
NO = Rejected()
ELSEWHERE = Position(5, 1, 0)


def back(reason: ReleaseReason) -> RequestRelease:
    """Its stock goes back."""
    return RequestRelease(ORDER.purchase_id, ORDER.product_id, ORDER.reservation, reason, ORDER.traceparent)


def gone(reason: str, version: int = 3, refund: str = "none", *, returned: bool = False) -> Transition:
    """The row becomes released."""
    return Transition(Released(ORDER, version, reason, refund, returned))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("purchase", "message", "effects"),
    [
        (HELD, PaymentApproved(), (Transition(SOLD), KeepApproval())),
        (HELD, PaymentApproved(8_400, "EUR"), (Transition(SOLD), KeepApproval())),
        (HELD, PaymentApproved(4_200, "EUR"), (KeepCapture(), Refuse("amount_differs"))),
        (HELD, PaymentApproved(8_400, "USD"), (KeepCapture(), Refuse("amount_differs"))),
        (HELD, PaymentDeclined(), (gone("payment_declined"), back("payment_declined"), Void(captured=False))),
        (HELD, HoldExpired(), (gone("hold_expired"), back("hold_expired"), Void(captured=False))),
        (HELD, CancelAsked(ORDER.buyer_id), (gone("cancelled"), back("cancelled"), Void(captured=False))),
        (
            HELD,
            CancelAsked("operator"),
            (gone("cancelled_by_operator"), back("cancelled_by_operator"), Void(captured=False)),
        ),
        (HELD, CancelAsked("someone-else"), (Refuse("not_the_buyer"),)),
        (SOLD, CancelAsked(ORDER.buyer_id), (gone("cancelled", 4, "due"), back("cancelled"), Void(captured=True))),
        (SOLD, HoldExpired(), ()),
        (SOLD, PaymentDeclined(), ()),
        (SOLD, PaymentApproved(), ()),
        (GONE, CancelAsked(ORDER.buyer_id), ()),
        (NO, CancelAsked(ORDER.buyer_id), ()),
    ],
)
def test_payment_expiry_and_cancellation(purchase: Purchase, message: Message, effects: tuple[Effect, ...]) -> None:
    """Whoever is first decides a held purchase; a confirmed one can still be cancelled, and is refunded."""
    assert react(purchase, message) == effects


@pytest.mark.parametrize("purchase", [HELD, SOLD])
def test_a_cancellation_means_the_reservations_below_its_place(purchase: Purchase) -> None:
    """One that stands at the place or behind it was made after the operator had asked."""
    at = ORDER.reservation.offset
    everything = CancelAsked("operator")
    assert react(purchase, CancelAsked("operator", at + 1)) == react(purchase, everything) != ()
    for end in (0, at - 1, at):
        assert react(purchase, CancelAsked("operator", end)) == ()


def test_versions_begin_where_the_log_says() -> None:
    """A rejection is version 1, a reservation 2, and the first event on `orders` 3, whatever came before."""
    assert (NO.version, HELD.version, SOLD.version) == (1, 2, 3)
    [become, *_] = react(HELD, PaymentApproved())
    assert become == Transition(Confirmed(ORDER, 3))


@pytest.mark.parametrize("published", [0, 7])
def test_a_new_row_begins_above_what_was_published(published: int) -> None:
    """Rejected, held until it is paid, or sold at once: the versions 1, 2 and 3 above those of before a restore."""
    assert outcome(None, published) == (Rejected(1 + published), ())
    assert outcome(ORDER, published) == (Reserved(ORDER, 2 + published), ())
    sold = Confirmed(ORDER, 3 + published)
    assert outcome(ORDER, published, NothingToPay()) == (sold, (Transition(sold),))


@pytest.mark.parametrize("published", [0, 7])
def test_a_refused_row_is_given_back_and_nothing_is_voided(published: int) -> None:
    """It ends as a released order, with payments or without; a refused rejection stays one and has no effects."""
    ended = gone("row_error", 3 + published)
    assert outcome(ORDER, published, RowRefused()) == (ended.state, (ended, back("row_error")))
    assert outcome(None, published, RowRefused()) == (Rejected(1 + published), ())


def test_messages_about_new_rows_change_no_other() -> None:
    """A row that is sold, ended or rejected is there: it was neither refused nor is it to be sold."""
    for purchase in (SOLD, GONE, NO):
        assert react(purchase, NothingToPay()) == react(purchase, RowRefused()) == ()


def test_the_log_beats_the_row() -> None:
    """Stock that is back on sale is not the buyer's: held or sold, the row is released, and a sold one refunded."""
    message = StockReleased(ORDER.reservation, "cancelled")
    assert react(HELD, message) == (gone("cancelled", returned=True), Void(captured=False))
    assert react(SOLD, message) == (gone("cancelled", 4, "due", returned=True), Void(captured=True))
    assert react(GONE, message) == (ConfirmReturn(),)
    assert react(replace(GONE, returned=True), message) == ()
    for purchase in (HELD, SOLD, GONE, NO):
        assert react(purchase, StockReleased(ELSEWHERE, "already_decided")) == ()


def test_a_late_approval_is_voided_and_refunded_once() -> None:
    """Money that arrives after the release goes back; a second report of it changes nothing."""
    become, void = react(GONE, PaymentApproved())
    assert (become, void) == (gone("payment_declined", 4, "due"), Void(captured=True))
    assert isinstance(become, Transition)
    assert react(become.state, PaymentApproved()) == ()
    refunded = gone("payment_declined", 5, "done")
    assert react(become.state, PaymentVoided()) == (refunded,)
    assert react(refunded.state, PaymentVoided()) == ()
    assert react(refunded.state, PaymentApproved()) == ()
    assert react(NO, PaymentApproved()) == (Void(captured=True),)


def test_a_void_answered_before_the_money_was_known_of_settles_nothing() -> None:
    """The provider said "nothing to give back", then the money was reported: it has to be voided again."""
    become, _ = react(GONE, PaymentApproved())
    assert isinstance(become, Transition)
    assert react(become.state, PaymentVoided(captured=False)) == ()
    assert react(become.state, PaymentVoided(captured=True)) == (gone("payment_declined", 5, "done"),)


def test_a_reported_refund_must_be_the_price_and_of_an_order_that_ended() -> None:
    """Half of the money is no refund, and a refund of what is sold is a mistake: both become dead letters."""
    become, _ = react(GONE, PaymentApproved())
    assert isinstance(become, Transition)
    assert react(become.state, PaymentVoided(True, 4_200, "EUR")) == (Refuse("amount_differs"),)
    assert react(become.state, PaymentVoided(True, 8_400, "EUR")) == (gone("payment_declined", 5, "done"),)
    assert react(SOLD, PaymentVoided(True, 8_400, "EUR")) == (Refuse("refund_of_a_sold_order"),)
    assert react(HELD, PaymentVoided(True, 8_400, "EUR")) == ()
