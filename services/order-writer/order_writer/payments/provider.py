"""The payment provider as the order-writer sees it (a port), and the two that hold no money: `none` and `webhook`.

Any other is a package of its own, found by its entry point: docs/payment-providers.md.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

from msgspec import Struct

from order_writer.saga.orders import Order
from stampede_schemas.identifiers import PurchaseId


class Approved(Struct, frozen=True):
    """The money is there."""


class Declined(Struct, frozen=True):
    """There will be no money; `reason` is the provider's word."""

    reason: str


class Voided(Struct, frozen=True):
    """Whatever was captured went back, and nothing will be captured any more."""


class Unknown(Struct, frozen=True):
    """No answer that means anything: ask again. Unknown is never failed."""


class Awaited(Struct, frozen=True):
    """The provider was not called: it reports by itself, and the report comes over `order-commands`."""


Verdict = Approved | Declined | Unknown | Awaited
Answer = Verdict | Voided


class Provider(Protocol):
    """All three are idempotent by purchase. They may raise: it counts as unknown, and as the provider's failure.

    They run in the order-writer's event loop and must not block it. A provider that takes no real money says so with
    an attribute `simulated = True`, and production refuses it.
    """

    async def authorize(self, order: Order, /) -> Verdict:
        """Capture the price of the order, or say why not."""

    async def query(self, order: Order, /) -> Verdict:
        """The state of an authorisation that must not be repeated, because the provider may have forgotten it."""

    async def void(self, purchase_id: PurchaseId, /, *, captured: bool) -> Voided | Unknown | Awaited:
        """Refund what was captured, and refuse every later authorisation. `captured`: an approval is known."""


class NoPayment:
    """No payment is taken: orders are confirmed as they are inserted, and there is nothing to return."""

    async def authorize(self, _order: Order) -> Verdict:
        """Approve."""
        return Approved()

    query = authorize

    async def void(self, _purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """There was no money."""
        del captured
        return Voided()


class Webhook:
    """Another party takes the money and reports: the gateway's webhook writes it to `order-commands`.

    No provider can be called, only told by the public events: an `OrderReleased` says that nothing may be taken any
    more, and with `refund: due` that what was taken has to go back. Such a refund stays due until `RefundReported`
    says that it was given. Where no approval is known, there is nothing to wait for; one that comes
    later makes a refund due.
    """

    async def authorize(self, _order: Order) -> Verdict:
        """Wait for the report."""
        return Awaited()

    query = authorize

    async def void(self, _purchase_id: PurchaseId, *, captured: bool) -> Voided | Awaited:
        """Nothing to give back, or the report of it has to come."""
        return Awaited() if captured else Voided()


ENTRY_POINTS = "stampede.payment_providers"
BUILT_IN: Mapping[str, Callable[[], Provider]] = {"none": NoPayment, "webhook": Webhook}


class ProviderWrong(Exception):
    """The provider that is set cannot be used; the message says why."""


def provider_named(name: str, environment: Mapping[str, str], *, production: bool) -> Provider:
    """The provider `STAMPEDE_PAYMENT` names: a built-in one, or what an installed package's entry point makes.

    The entry point, in the group `stampede.payment_providers`, is called once with the process's environment, in which
    the provider has its own settings, and returns a Provider.

    Raises:
        ProviderWrong: no package has a provider of that name, or two have, or it is play money in production; also
            raised by the entry point itself, for a setting that is wrong.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    found = entry_points(group=ENTRY_POINTS)
    if len(named := list(found.select(name=name))) != 1:
        names = ", ".join(map(repr, sorted({*BUILT_IN, *found.names})))
        raise ProviderWrong(
            f"STAMPEDE_PAYMENT={name}: {len(named)} installed packages have a provider of that name, not one; "
            f"the names found are {names}"
        )
    provider: Provider = named[0].load()(environment)
    if production and getattr(provider, "simulated", False):
        raise ProviderWrong(f"STAMPEDE_PAYMENT={name} sells for play money: set another with STAMPEDE_ENV=prod")
    return provider
