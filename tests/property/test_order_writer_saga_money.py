"""Money and stock of one purchase, whatever happens in whatever order: at the end they say the same.

A provider, calls and reports that are lost, late or repeated, and the saga with its payment row, as one machine.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from order_writer.saga import orders
from stampede_schemas.identifiers import Position
from tests.support.builders.orders import order

ORDER = order()
PRICE = ORDER.unit_price_minor * ORDER.quantity


class ProviderStatement:
    """A provider that captures once, refunds once, and takes nothing after a void."""

    def __init__(self) -> None:
        self.captured = self.refunded = self.voided = False

    def capture(self) -> bool:
        """Whether the money is there."""
        if self.voided:
            return False
        self.captured = True
        return True

    def void(self) -> None:
        """For good."""
        self.refunded, self.voided = self.captured, True

    @property
    def balance(self) -> int:
        """What it keeps."""
        return PRICE * (self.captured - self.refunded)


class Money(RuleBasedStateMachine):
    """The saga, its payment row as `unit_of_work.py` keeps it, and the messages under way to the provider and back."""

    def __init__(self) -> None:
        super().__init__()
        self.purchase: orders.Purchase = orders.Reserved(ORDER)
        self.state, self.captured = "due", False
        self.statement = ProviderStatement()
        self.under_way: list[orders.Message] = []
        self.given_back = 0

    def handle(self, message: orders.Message) -> None:
        """One transaction."""
        effects = orders.react(self.purchase, message)
        before, self.purchase = self.purchase, orders.evolve(self.purchase, effects)
        assert self.purchase.version - before.version == sum(isinstance(e, orders.Transition) for e in effects)
        refused = any(isinstance(effect, orders.Refuse) for effect in effects)
        settles = isinstance(message, orders.PaymentVoided) and (message.captured or not self.captured)
        if settles and not refused and self.state == "void_due":
            self.state = "voided"
        for effect in effects:
            match effect:
                case orders.RequestRelease():
                    self.given_back += 1
                case orders.KeepApproval():
                    self.state, self.captured = "approved", True
                case orders.KeepCapture():
                    self.captured = True
                case orders.Void(captured):
                    self.state, self.captured = "void_due", self.captured or captured
                case _:
                    pass

    @rule(which=st.integers(0, 9), again=st.booleans())
    def something_arrives(self, which: int, *, again: bool) -> None:
        """An answer or a report, out of order, and perhaps not for the last time."""
        if self.under_way:
            message = self.under_way.pop(which % len(self.under_way))
            self.under_way += [message] * again
            self.handle(message)

    @rule()
    def the_hold_ends(self) -> None:
        """By the clock."""
        self.handle(orders.HoldExpired())

    @rule(actor=st.sampled_from([ORDER.buyer_id, "operator", "stranger"]))
    def somebody_cancels(self, actor: str) -> None:
        """Perhaps somebody who may not."""
        self.handle(orders.CancelAsked(actor))

    @precondition(lambda self: self.given_back)
    @rule()
    def the_log_takes_it_back(self) -> None:
        """The inventory's answer to the release."""
        self.handle(orders.StockReleased(ORDER.reservation, "cancelled"))

    @rule()
    def a_wrong_report_comes(self) -> None:
        """Of a cent: it confirms nothing and settles nothing."""
        was = self.purchase
        self.handle(orders.PaymentVoided(True, 1, "EUR"))
        assert self.purchase == was

    @invariant()
    def a_sold_order_is_paid(self) -> None:
        """Nobody has it without the money being there."""
        assert not isinstance(self.purchase, orders.Confirmed) or self.statement.balance == PRICE

    @invariant()
    def the_units_are_where_the_row_says(self) -> None:
        """Given back once if released, and not otherwise."""
        assert self.given_back == isinstance(self.purchase, orders.Released)

    @invariant()
    def a_refund_that_is_done_was_made(self) -> None:
        """No refund is published that was not made."""
        refund = self.purchase.refund if isinstance(self.purchase, orders.Released) else "none"
        assert refund != "done" or self.statement.refunded

    def settle(self) -> None:
        """What goes on until there is nothing left to do."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Everything on its way arrives, the hold ends, every void is answered: money and row agree."""
        while self.under_way:
            self.handle(self.under_way.pop())
        self.handle(orders.HoldExpired())
        self.settle()
        assert self.statement.balance == (PRICE if isinstance(self.purchase, orders.Confirmed) else 0)
        assert self.state == ("approved" if isinstance(self.purchase, orders.Confirmed) else "voided")
        if isinstance(self.purchase, orders.Released):
            assert self.purchase.refund != "due"
            assert self.purchase.refund == "none" or self.statement.refunded


class Asked(Money):
    """A provider that is called, and that keeps to a void."""

    @precondition(lambda self: self.state == "due")
    @rule(what=st.sampled_from(["approved", "declined", "unknown", "nothing"]))
    def it_is_asked(self, what: str) -> None:
        """It may take the money and not say so; only held orders are charged."""
        assert isinstance(self.purchase, orders.Reserved)
        if what == "declined" and not self.statement.captured:
            self.under_way.append(orders.PaymentDeclined())
        elif what in {"approved", "unknown"} and self.statement.capture() and what == "approved":
            self.under_way.append(orders.PaymentApproved())

    @precondition(lambda self: self.state == "void_due")
    @rule(answered=st.booleans())
    def it_is_told_to_void(self, *, answered: bool) -> None:
        """The answer may be lost."""
        self.statement.void()
        if answered:
            self.under_way.append(orders.PaymentVoided(self.captured))

    def settle(self) -> None:
        """Voids are repeated until they are answered."""
        while self.state == "void_due":
            self.statement.void()
            self.handle(orders.PaymentVoided(self.captured))


class Reported(Money):
    """A provider that nobody can ask: the buyer pays there at any time, and it reports."""

    @rule()
    def the_buyer_pays(self) -> None:
        """Once, in time or not."""
        if not self.statement.captured and self.statement.capture():
            self.under_way.append(orders.PaymentApproved(PRICE, "EUR"))

    @rule()
    def the_buyer_fails_to_pay(self) -> None:
        """For good, unless the money is there already."""
        if not self.statement.captured:
            self.statement.voided = True
            self.under_way.append(orders.PaymentDeclined())

    @precondition(lambda self: self.state == "void_due" and not self.captured)
    @rule()
    def there_is_nothing_to_give_back(self) -> None:
        """As far as anybody knows when the void is due."""
        self.under_way.append(orders.PaymentVoided(captured=False))

    @precondition(lambda self: isinstance(self.purchase, orders.Released) and self.purchase.refund == "due")
    @rule()
    def the_refund_that_was_told_is_made(self) -> None:
        """Somebody read `OrderReleased` with `refund: due`."""
        self.statement.refunded = True
        self.under_way.append(orders.PaymentVoided(True, PRICE, "EUR"))

    def settle(self) -> None:
        """Refunds that are due are made."""
        if self.state == "void_due" and not self.captured:
            self.handle(orders.PaymentVoided(captured=False))
        if self.state == "void_due":
            self.the_refund_that_was_told_is_made()
            self.handle(self.under_way.pop())


TestAsked = Asked.TestCase
TestReported = Reported.TestCase
TestAsked.settings = TestReported.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_stock_that_is_back_on_sale_ends_any_order() -> None:
    """The log beats the row also without a request: what was sold is refunded."""
    machine = Asked()
    machine.statement.capture()
    machine.handle(orders.PaymentApproved())
    machine.handle(orders.StockReleased(Position(9, 9, 9), "cancelled"))
    assert isinstance(machine.purchase, orders.Confirmed)
    machine.handle(orders.StockReleased(ORDER.reservation, "cancelled"))
    machine.settle()
    assert isinstance(machine.purchase, orders.Released)
    assert (machine.purchase.refund, machine.statement.balance, machine.given_back) == ("done", 0, 0)
