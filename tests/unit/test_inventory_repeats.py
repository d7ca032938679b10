"""A purchase that is asked for again: what the fold remembers of it, and for how long."""

import pytest

from inventory.table import REJECTED_GENERATION, StockTable
from stampede_schemas.decisions import Ignored, Released, Reserved
from stampede_schemas.identifiers import Position, PurchaseId
from stampede_schemas.requests import AnyRequest, PurchaseRequested
from tests.support.builders.decided import Sale, given
from tests.support.builders.requests import LAMP, listing, purchase, release, restock, retire


def repeat(of: tuple[int, int], *, mismatch: bool) -> Ignored:
    """The answer to a purchase that was answered at (offset, index) before."""
    return Ignored(
        v=2,
        reason="answered",
        product_id=LAMP,
        purchase_id=PurchaseId("buy-1"),
        of=Position(0, *of),
        mismatch=mismatch,
    )


@pytest.mark.parametrize("ended", [False, True])
def test_a_repeated_purchase_points_to_its_first_answer(ended: bool) -> None:
    """Live or released, with other content or not: it takes nothing more."""
    sale = given(listing(), purchase())
    if ended:
        sale.when(release((1, 0)))
    left = sale.table.products[LAMP].available
    assert sale.when(purchase()) == repeat((1, 0), mismatch=False)
    assert sale.when(purchase(quantity=2, fingerprint="g")) == repeat((1, 0), mismatch=True)
    assert sale.table.products[LAMP].available == left


def test_a_repeated_rejected_purchase_stays_rejected() -> None:
    """Even when there would be units by now; and a repeat of a repeat names the first answer."""
    sale = given(listing(stock=0), purchase(), restock(5))
    assert sale.when(purchase()) == repeat((1, 0), mismatch=False)
    assert sale.when(purchase(fingerprint="g")) == repeat((1, 0), mismatch=True)
    assert sale.when(purchase()) == repeat((1, 0), mismatch=False)


@pytest.mark.parametrize("stock", [0, 3])
@pytest.mark.parametrize(
    ("first", "then", "differs"),
    [
        ("0123456789abcdef" * 2, "0123456789abcdef" * 2, False),
        ("0123456789abcdef" * 2, "0123456789abcdeX" * 2, True),
        ("0123456789abcdef", "0123456789abcde", True),
        ("f", "ff", True),
        ("ff", "f", True),
    ],
)
def test_bodies_are_compared_by_their_fingerprints(stock: int, first: str, then: str, differs: bool) -> None:
    """Whether the purchase was reserved or rejected, and however long fingerprints are."""
    sale = given(listing(stock=stock), purchase(fingerprint=first))
    assert sale.when(purchase(fingerprint=then)) == repeat((1, 0), mismatch=differs)


def test_of_a_rejection_eight_bytes_of_the_fingerprint_are_kept() -> None:
    """Half a million rejections have to fit into memory; of a reservation the whole is known."""
    body, other = "0123456789abcdef" + "0" * 16, "0123456789abcdef" + "1" * 16
    rejected = given(listing(stock=0), purchase(fingerprint=body))
    assert rejected.table.rejected[PurchaseId("buy-1")] == (1, 0, "0123456789abcdef")
    assert rejected.when(purchase(fingerprint=other)) == repeat((1, 0), mismatch=False)
    reserved = given(listing(), purchase(fingerprint=body))
    assert reserved.when(purchase(fingerprint=other)) == repeat((1, 0), mismatch=True)


def test_rejections_are_remembered_for_two_generations() -> None:
    """The newest 250,000 at least; a generation is forgotten at once."""
    table, half = StockTable(0), REJECTED_GENERATION
    assert half == 250_000
    for n in range(2 * half + 1):
        table.remember_rejected(PurchaseId(f"r{n}"), n, 0, "f")
    assert table.answered(PurchaseId("r0"), "f") is None
    assert table.answered(PurchaseId(f"r{half - 1}"), "f") is None
    assert table.answered(PurchaseId(f"r{half}"), "f") == (Position(0, half, 0), False)
    assert len(table.rejected) + len(table.rejected_before) == half + 1


def forgetful(*requests: AnyRequest) -> Sale:
    """A sale whose fold remembers two rejections in one generation."""
    sale = Sale(StockTable(0, generation=2))
    for request in requests:
        sale.when(request)
    return sale


def turned_away(count: int) -> list[AnyRequest]:
    """So many purchases of other buyers that ask for too much."""
    return [purchase(f"crowd-{n}", f"crowd-{n}", 9) for n in range(count)]


@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize("between", range(3))
def test_a_rejection_outlives_a_generation_of_later_ones(before: int, between: int) -> None:
    """Wherever in its own generation it stands."""
    earlier = [purchase(f"early-{n}", quantity=9) for n in range(before)]
    sale = forgetful(listing(stock=0), *earlier, purchase(), *turned_away(between), restock(3))
    assert sale.when(purchase()) == repeat((1 + before, 0), mismatch=False)


def test_a_forgotten_rejection_is_decided_anew_and_then_the_reservation_counts() -> None:
    """It wins, is repeated as what it is now, and is given back like any other; nothing of the rejection is left."""
    sale = forgetful(listing(stock=0), purchase(), *turned_away(4), restock(3))
    won = sale.when(purchase(fingerprint="g"))
    assert isinstance(won, Reserved)
    assert sale.when(purchase(fingerprint="g")) == repeat((7, 0), mismatch=False)
    assert sale.when(purchase(fingerprint="f")) == repeat((7, 0), mismatch=True)
    assert isinstance(sale.when(release((7, 0))), Released)
    assert sale.when(purchase(fingerprint="g")) == repeat((7, 0), mismatch=False)


def test_what_held_units_once_is_remembered_however_many_are_rejected() -> None:
    """Live or ended, until its product is retired."""
    sale = forgetful(listing(), purchase(), purchase("live", "bob"), release((1, 0)), *turned_away(20))
    assert sale.when(purchase()) == repeat((1, 0), mismatch=False)
    assert set(sale.table.purchases) == {"buy-1", "live"}


@pytest.mark.parametrize("forgotten", [purchase(), purchase(fingerprint="g"), purchase("never-seen", "bob")])
def test_a_purchase_of_a_retired_product_has_no_outcome(forgotten: PurchaseRequested) -> None:
    """It may be the repeat of one that was reserved and is forgotten; so nothing is said that could contradict it."""
    sale = given(listing(), purchase(), retire())
    before = sale.table.digest()
    nothing = Ignored(v=2, reason="retired", product_id=LAMP, purchase_id=forgotten.purchase_id)
    assert sale.when(forgotten) == sale.when(forgotten) == nothing
    assert sale.table.digest() == before


def test_a_rejection_outlives_its_product() -> None:
    """As long as it is remembered, its repeat is told the first answer."""
    sale = given(listing(stock=0), purchase(), retire())
    assert sale.when(purchase()) == repeat((1, 0), mismatch=False)
    assert sale.when(purchase(fingerprint="g")) == repeat((1, 0), mismatch=True)
