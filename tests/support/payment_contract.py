"""What is asked of a payment provider, played against one: `python -m tests.support.payment_contract OK LOST`.

OK is a payment method that the provider approves; LOST one by which it takes the money and its answer gets lost. The
provider is the one that STAMPEDE_PAYMENT names. Purchases have new ids each time.
"""

import asyncio
import os
import secrets
import sys

from msgspec.structs import replace

from order_writer.payments.provider import Approved, Declined, Provider, Unknown, Verdict, Voided, provider_named
from order_writer.saga.orders import Order
from tests.support.builders.orders import order


async def keeps_the_contract(provider: Provider, approved: str, lost: str) -> list[Order]:
    """Fail where the provider breaks a promise of the port.

    Returns:
        Three orders: one that was captured and refunded, one that was refunded though nobody heard of the capture, and
        one that was voided before it could be paid.
    """
    paid, unheard, early = (_order(approved), _order(lost), _order(approved))
    assert await asyncio.gather(*(authorize(provider, paid) for _ in range(3))) == [Approved()] * 3
    assert await provider.query(paid) == Approved()
    await _voided(provider, paid, captured=True)

    assert await authorize(provider, unheard) == Unknown(), "unknown is never failed, nor is it money"
    assert await provider.query(unheard) == Approved(), "the money was taken"
    await _voided(provider, unheard, captured=False)

    assert isinstance(await provider.query(early), Declined), "a query begins nothing"
    await _voided(provider, early, captured=False)
    return [paid, unheard, early]


async def authorize(provider: Provider, asked: Order) -> Verdict:
    """As the order-writer hears it: what raises is unknown."""
    try:
        return await provider.authorize(asked)
    except Exception:
        return Unknown()


async def _voided(provider: Provider, asked: Order, *, captured: bool) -> None:
    assert [await provider.void(asked.purchase_id, captured=captured) for _ in range(2)] == [Voided()] * 2
    assert await authorize(provider, asked) != Approved(), "a void is sticky"
    assert isinstance(await provider.query(asked), Declined), "after a void no money is left, and none comes"


def _order(method: str) -> Order:
    return replace(order(f"contract-{secrets.token_hex(8)}"), payment_method=method)


async def _main(approved: str, lost: str) -> None:
    provider = provider_named(os.environ["STAMPEDE_PAYMENT"], os.environ, production=False)
    for kept in await keeps_the_contract(provider, approved, lost):
        print(kept.purchase_id)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
