"""Sagas with one reaction wrong, and order-writers with one rule of rejected rows wrong, for the simulator to find."""

from msgspec.structs import replace

from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch, Row
from order_writer.saga.orders import Effect, Message, Purchase, react
from stampede_schemas.decisions import Rejected, Reserved
from stampede_schemas.identifiers import Position
from tests.simulation.book import Book


def forgets_the_void(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """What was captured for a purchase that is given back stays with us."""
    return tuple(effect for effect in react(purchase, message) if not isinstance(effect, orders.Void))


def gives_nothing_back(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """A cancelled purchase ends, and its units stay sold."""
    effects = react(purchase, message)
    if not isinstance(message, orders.CancelAsked):
        return effects
    return tuple(effect for effect in effects if not isinstance(effect, orders.RequestRelease))


def believes_the_row(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """A confirmed order is not touched by what the log gave back."""
    if isinstance(purchase, orders.Confirmed) and isinstance(message, orders.StockReleased):
        return ()
    return react(purchase, message)


def revives(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """A late approval makes a released purchase confirmed."""
    if isinstance(purchase, orders.Released) and isinstance(message, orders.PaymentApproved):
        return orders.Transition(orders.Confirmed(purchase.order, purchase.version + 1)), orders.KeepApproval()
    return react(purchase, message)


def never_refunds(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """Nobody is told that the money went back."""
    return () if isinstance(message, orders.PaymentVoided) else react(purchase, message)


def gives_back_elsewhere(purchase: Purchase, message: Message) -> tuple[Effect, ...]:
    """The release names the request after the one that reserved."""
    return tuple(
        replace(effect, reservation=replace(effect.reservation, offset=effect.reservation.offset + 1))
        if isinstance(effect, orders.RequestRelease)
        else effect
        for effect in react(purchase, message)
    )


class FirstOutcomes(Batch):
    """A batch that keeps the first outcome of a purchase, also when that is a rejection."""

    def _outcome(self, decision: Reserved | Rejected, position: Position) -> None:
        if decision.purchase_id not in self.rows:
            super()._outcome(decision, position)


class ReducesToTheFirst(Book):
    """A rejection and the reservation after it in one batch leave a rejected row."""

    batch = FirstOutcomes


class RevivesWithoutAVersion(Book):
    """A reservation takes the place of a rejection under the version that was told of the rejection."""

    def _outcome(self, row: Row) -> tuple[Purchase, tuple[Effect, ...]]:
        known, (state, effects) = self._row(row.purchase_id), super()._outcome(row)
        return (state if known is None else replace(state, version=known.version)), effects


class NeverRevives(Book):
    """A rejected row is final."""

    def _stands(self, known: Purchase, row: Row) -> bool:
        return True


class DropsCommandsOfTheRejected(Book):
    """A command is acted on by a rejected row, though the reservation it is about is still on its way."""

    def _waits(self, row: Purchase | None, end: int) -> bool:
        return row is None


class KeepsCommandsOfTheRejected(Book):
    """A command on a rejected row waits for ever."""

    def _waits(self, row: Purchase | None, end: int) -> bool:
        return row is None or isinstance(row, orders.Rejected)
