"""Whichever messages come about a purchase, in any order: status only rises, and its stock goes back at most once."""

from hypothesis import given
from hypothesis import strategies as st

from order_writer.saga.orders import (
    CancelAsked,
    Confirmed,
    HoldExpired,
    Message,
    NewRowMessage,
    NothingToPay,
    PaymentApproved,
    PaymentDeclined,
    PaymentVoided,
    Purchase,
    Rejected,
    Released,
    RequestRelease,
    Reserved,
    RowRefused,
    StockReleased,
    Transition,
    Void,
    evolve,
    outcome,
    react,
)
from stampede_schemas.identifiers import Position
from tests.support.builders.orders import order

ORDER = order()
ELSEWHERE = Position(5, 1, 0)
PLACES = st.sampled_from([ORDER.reservation, ELSEWHERE])
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.just(PaymentApproved()),
    st.just(PaymentApproved(1, "EUR")),
    st.just(PaymentDeclined()),
    st.builds(PaymentVoided, st.booleans()),
    st.just(PaymentVoided(True, 1, "EUR")),
    st.just(HoldExpired()),
    st.just(NothingToPay()),
    st.just(RowRefused()),
    st.builds(
        CancelAsked,
        st.sampled_from([ORDER.buyer_id, "operator", "other"]),
        st.none() | st.integers(0, 2 * ORDER.reservation.offset),
    ),
    st.builds(StockReleased, PLACES, st.sampled_from(["cancelled", "already_decided"])),
)
RANK = {Rejected: 0, Reserved: 1, Confirmed: 2, Released: 3}


@given(st.integers(0, 9), st.sampled_from([None, NothingToPay(), RowRefused()]), st.lists(MESSAGES, max_size=30))
def test_a_reservation_ends_once(published: int, first: NewRowMessage | None, messages: list[Message]) -> None:
    """Status and refund only rise, each version is one event above those that were published before a restore, and one
    release is asked for, or none if the log did."""
    purchase, effects = outcome(ORDER, published, first)
    assert purchase.version == 2 + published + sum(isinstance(effect, Transition) for effect in effects)
    assert all(effect.state == purchase for effect in effects if isinstance(effect, Transition))
    backs = sum(isinstance(effect, RequestRelease) for effect in effects)
    for message in messages:
        effects = react(purchase, message)
        after = evolve(purchase, effects)
        assert RANK[type(after)] >= RANK[type(purchase)]
        assert after.version - purchase.version == sum(isinstance(effect, Transition) for effect in effects)
        if isinstance(purchase, Released):
            assert isinstance(after, Released)
            assert ["none", "due", "done"].index(after.refund) >= ["none", "due", "done"].index(purchase.refund)
            assert after.returned >= purchase.returned
        backs += sum(isinstance(e, RequestRelease) and e.reservation == ORDER.reservation for e in effects)
        assert isinstance(after, Released) or backs == 0
        purchase = after
    by_log = isinstance(purchase, Released) and purchase.returned and backs == 0
    assert backs == (isinstance(purchase, Released) and not by_log)


@given(st.lists(MESSAGES, max_size=30))
def test_handling_every_message_twice_changes_nothing(messages: list[Message]) -> None:
    """At-least-once delivery is enough: a repeated message finds its work done."""
    purchase: Purchase = Reserved(ORDER)
    for message in messages:
        purchase = evolve(purchase, react(purchase, message))
        repeated = react(purchase, message)
        assert evolve(purchase, repeated) == purchase
        assert not any(isinstance(e, RequestRelease) and e.reservation == ORDER.reservation for e in repeated)


@given(st.lists(MESSAGES, max_size=30))
def test_a_rejected_purchase_stays_rejected(messages: list[Message]) -> None:
    """It holds nothing that could go back but money, and only a reservation in the log replaces it."""
    purchase: Purchase = Rejected()
    for message in messages:
        effects = react(purchase, message)
        assert evolve(purchase, effects) == purchase
        assert effects == ((Void(captured=True),) if isinstance(message, PaymentApproved) else ())


@given(st.lists(MESSAGES, max_size=10), st.integers(0, 2 * ORDER.reservation.offset))
def test_a_cancellation_means_the_same_whenever_it_is_read(messages: list[Message], end: int) -> None:
    """An order of any state is undone if it was reserved below the place, and left as it is otherwise."""
    purchase: Purchase = Reserved(ORDER)
    for message in messages:
        purchase = evolve(purchase, react(purchase, message))
    after = evolve(purchase, react(purchase, CancelAsked("operator", end)))
    assert isinstance(after, Released) if ORDER.reservation.offset < end else after == purchase
