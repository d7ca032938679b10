"""The saga of one purchase, as a decider: from its state and a message to effects.

Pure: no clock, no I/O. Timeouts are messages. The shell (`unit_of_work.py`) loads the state under a row lock, carries
out the effects in the same transaction, and so makes this module's answer the pivot between *confirmed* and *released*.
A purchase that has no row yet is decided here too (`outcome`), and stored as it was decided.
Status only rises: rejected < reserved < confirmed < released. Only the log makes a rejected purchase reserved.
"""

from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from stampede_schemas.identifiers import Position, ProductId, PurchaseId
from stampede_schemas.requests import ReleaseReason

Refund = Literal["none", "due", "done"]
# Versions follow from the log alone: gateways derive the first two from the same decisions.
REJECTED_VERSION, RESERVED_VERSION = 1, 2  # events begin at 3


class Order(Struct, frozen=True):
    """The lasting facts of a purchase that got stock. `traceparent` is None when its trace is not recorded."""

    purchase_id: PurchaseId
    buyer_id: str
    product_id: ProductId
    quantity: int
    reservation: Position
    reservation_no: int
    unit_price_minor: int
    currency: str
    payment_method: str
    traceparent: str | None


class Reserved(Struct, frozen=True):
    """Held for the buyer until paid, expired or cancelled; its payment is due."""

    status: ClassVar[Literal["reserved"]] = "reserved"
    order: Order
    version: int = RESERVED_VERSION


class Confirmed(Struct, frozen=True):
    """Sold."""

    status: ClassVar[Literal["confirmed"]] = "confirmed"
    order: Order
    version: int


class Released(Struct, frozen=True):
    """Given back for `reason`. `returned`: the inventory's `Released` was seen. `refund`: money that has to go back."""

    status: ClassVar[Literal["released"]] = "released"
    order: Order
    version: int
    reason: str
    refund: Refund
    returned: bool


class Rejected(Struct, frozen=True):
    """The log said no. A rejection that the inventory has forgotten may be decided again."""

    status: ClassVar[Literal["rejected"]] = "rejected"
    version: int = REJECTED_VERSION


Purchase = Reserved | Confirmed | Released | Rejected


class StockReleased(Struct, frozen=True):
    """The log gave the units of `reservation` back."""

    reservation: Position
    reason: ReleaseReason


class NothingToPay(Struct, frozen=True):
    """This installation takes no payment. Only a reservation that has no row yet gets this message."""


class RowRefused(Struct, frozen=True):
    """Postgres will never take the row of a reservation. Only one that has no row yet gets this message."""


class PaymentApproved(Struct, frozen=True):
    """The money is there. `amount_minor` and `currency` as the provider reported them; None from a direct answer."""

    amount_minor: int | None = None
    currency: str | None = None


class PaymentDeclined(Struct, frozen=True):
    """There will be no money."""


class HoldExpired(Struct, frozen=True):
    """`hold_until` has passed by the database's clock."""


class CancelAsked(Struct, frozen=True):
    """`actor` (the buyer's pseudonym, or `operator`) cancels the purchase.

    `requests_end`: it means only a reservation whose request stands below this offset of its partition.
    """

    actor: str
    requests_end: int | None = None


class PaymentVoided(Struct, frozen=True):
    """The provider returned what it had captured and will capture nothing more.

    `captured`: it was known at the call that there is money to return; if it became known only later, the answer
    counts for nothing. `amount_minor` and `currency` as the provider reported them; None from a direct answer.
    """

    captured: bool = True
    amount_minor: int | None = None
    currency: str | None = None


NewRowMessage = NothingToPay | RowRefused
Message = StockReleased | PaymentApproved | PaymentDeclined | HoldExpired | CancelAsked | PaymentVoided | NewRowMessage


class Transition(Struct, frozen=True):
    """The row takes this state; each version from 3 on is one public event on `orders`."""

    state: Confirmed | Released


class ConfirmReturn(Struct, frozen=True):
    """The units are back on sale: no new version, since nothing changes for the buyer."""


class RequestRelease(Struct, frozen=True):
    """Ask the inventory to take `reservation` back."""

    purchase_id: PurchaseId
    product_id: ProductId
    reservation: Position
    reason: ReleaseReason
    traceparent: str | None


class Void(Struct, frozen=True):
    """Tell the provider, until it answers: refund if captured, and never capture from now on.

    `captured`: there is money to give back; otherwise there may be some that is not known of.
    """

    captured: bool


class KeepApproval(Struct, frozen=True):
    """The payment is approved; the provider is not queried again."""


class KeepCapture(Struct, frozen=True):
    """Money was taken, though not the price: once the purchase ends it has to go back."""


class Refuse(Struct, frozen=True):
    """The message can never be acted on: a dead letter for `reason`."""

    reason: Literal["amount_differs", "not_the_buyer", "refund_of_a_sold_order"]


Effect = Transition | ConfirmReturn | RequestRelease | Void | KeepApproval | KeepCapture | Refuse


def outcome(
    order: Order | None, published: int = 0, message: NewRowMessage | None = None
) -> tuple[Purchase, tuple[Effect, ...]]:
    """The state of a purchase that has no row yet or a rejected one, with the effects of storing it so.

    Args:
        order: what was reserved; None: the log rejected it.
        published: the highest version published before a restore, else 0. No version is published twice.
        message: what becomes of a reservation at once; None: it is held until it is paid.
    """
    if order is None:
        return Rejected(REJECTED_VERSION + published), ()
    held = Reserved(order, RESERVED_VERSION + published)
    effects = react(held, message) if message else ()
    return evolve(held, effects), effects


def react(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """The effects of a message about a purchase; none when it is late, repeated or void."""
    match message:
        case NothingToPay() if isinstance(purchase, Reserved):
            return (Transition(Confirmed(purchase.order, purchase.version + 1)),)
        case RowRefused() if isinstance(purchase, Reserved):
            # No payment can be under way for a purchase without a row: there is nothing to void.
            return _release(purchase, "row_error", payable=False)
        case NothingToPay() | RowRefused():
            return ()
        case StockReleased():
            return _stock_released(purchase, message)
        case PaymentApproved():
            return _approved(purchase, message)
        case PaymentDeclined():
            return _release(purchase, "payment_declined") if isinstance(purchase, Reserved) else ()
        case HoldExpired():
            return _release(purchase, "hold_expired") if isinstance(purchase, Reserved) else ()
        case CancelAsked():
            return _cancelled(purchase, message)
        case PaymentVoided():
            return _voided(purchase, message)
        case _:
            assert_never(message)


def evolve(purchase: Purchase, effects: tuple[Effect, ...]) -> Purchase:
    """The state after the effects of one reaction."""
    for effect in effects:
        match effect:
            case Transition():
                purchase = effect.state
            case ConfirmReturn():
                assert isinstance(purchase, Released)
                purchase = replace(purchase, returned=True)
            case RequestRelease() | Void() | KeepApproval() | KeepCapture() | Refuse():
                pass
            case _:
                assert_never(effect)
    return purchase


def _release(
    held: Reserved | Confirmed, reason: ReleaseReason, *, by_log: bool = False, payable: bool = True
) -> tuple[Effect, ...]:
    """Only a confirmed order was paid for; whatever else the provider may do is forbidden by the void."""
    order, paid = held.order, isinstance(held, Confirmed)
    refund: Refund = "due" if paid else "none"
    released = Transition(Released(order, held.version + 1, reason, refund, returned=by_log))
    back = RequestRelease(order.purchase_id, order.product_id, order.reservation, reason, order.traceparent)
    return released, *(() if by_log else (back,)), *((Void(paid),) if payable else ())


def _stock_released(purchase: Purchase, message: StockReleased) -> tuple[Effect, ...]:
    """The log beats the row: units that are back on sale are not this buyer's, also where the row says so."""
    match purchase:
        case Rejected():
            return ()
        case Reserved() | Confirmed():
            ours = purchase.order.reservation == message.reservation
            return _release(purchase, message.reason, by_log=True) if ours else ()
        case Released():
            ours = purchase.order.reservation == message.reservation
            return (ConfirmReturn(),) if ours and not purchase.returned else ()
        case _:
            assert_never(purchase)


def _approved(purchase: Purchase, message: PaymentApproved) -> tuple[Effect, ...]:
    match purchase:
        case Reserved(order=order):
            if _differs(order, message):
                return KeepCapture(), Refuse("amount_differs")
            return Transition(Confirmed(order, purchase.version + 1)), KeepApproval()
        case Confirmed():
            return ()
        case Released(refund="none"):
            # Too late: the units may be sold to another buyer. The money goes back, once.
            return Transition(replace(purchase, version=purchase.version + 1, refund="due")), Void(captured=True)
        case Released():
            return ()
        case Rejected():
            return (Void(captured=True),)
        case _:
            assert_never(purchase)


def _cancelled(purchase: Purchase, message: CancelAsked) -> tuple[Effect, ...]:
    match purchase:
        case Reserved(order=order) | Confirmed(order=order):
            if message.requests_end is not None and order.reservation.offset >= message.requests_end:
                return ()
            if message.actor == "operator":
                return _release(purchase, "cancelled_by_operator")
            return _release(purchase, "cancelled") if message.actor == order.buyer_id else (Refuse("not_the_buyer"),)
        case Released() | Rejected():
            return ()
        case _:
            assert_never(purchase)


def _voided(purchase: Purchase, message: PaymentVoided) -> tuple[Effect, ...]:
    match purchase:
        case Released(order=order, refund=refund):
            if _differs(order, message):
                return (Refuse("amount_differs"),)
            if refund != "due" or not message.captured:
                return ()
            return (Transition(replace(purchase, version=purchase.version + 1, refund="done")),)
        case Confirmed():
            return (Refuse("refund_of_a_sold_order"),)
        case Reserved() | Rejected():
            return ()
        case _:
            assert_never(purchase)


def _differs(order: Order, report: PaymentApproved | PaymentVoided) -> bool:
    price = order.unit_price_minor * order.quantity
    return report.amount_minor is not None and (report.amount_minor, report.currency) != (price, order.currency)
