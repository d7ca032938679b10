"""What is known of a purchase never falls, in whatever order rows, events and decisions arrive."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.read_side.purchase_memory import PurchaseMemory, RememberedIds, newest
from gateway.read_side.purchase_state import Accepted, Answered, Ordered, Purchase, Rejected, Reserved
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId

BUY = PurchaseId("buy")
FIRST, SECOND = Position(0, 3, 0), Position(0, 9, 1)
RANK = {"pending": 0, "rejected": 1, "reserved": 1, "confirmed": 2, "released": 3}


def body(at: Position, fingerprint: str = "f") -> tuple[PurchaseId, BuyerId, ProductId, int, str, Position, None]:
    """The fields that every state begins with."""
    return BUY, BuyerId("ann"), ProductId("lamp"), 1, fingerprint, at, None


SALE = (1, 500, "EUR", Millis(1))
REJECTED = Rejected(*body(FIRST), "sold_out", Millis(1))
RESERVED = Reserved(*body(SECOND), *SALE)


def ordered(status: str, version: int, refund: str = "none", fingerprint: str = "") -> Ordered:
    """As an event tells it, or a row with its fingerprint."""
    return Ordered(*body(SECOND, fingerprint), status, version, None, 1, 500, "EUR", refund, Millis(2))  # type: ignore[arg-type]


LIFE: tuple[Purchase, ...] = (
    Accepted(*body(SECOND), 0.0),
    Answered(BUY, FIRST),
    REJECTED,
    RESERVED,
    replace(RESERVED, hold_until_ms=Millis(60_000)),  # its row, read before the confirmation
    ordered("confirmed", 3),
    ordered("confirmed", 3, fingerprint="f"),  # its row
    ordered("released", 4, "due"),
    ordered("released", 5, "done"),
)


def order(known: Purchase) -> tuple[int, int]:
    """(version, status)."""
    return known.version, RANK[known.status]


@given(st.permutations(LIFE), st.integers(0, 3))
def test_it_never_falls_whatever_the_order(told: list[Purchase], repeated: int) -> None:
    """Also when some of it is heard again; at the end the newest state is known with its body."""
    known: Purchase | None = None
    for state in [*told, *told[:repeated]]:
        now = newest(known, state)
        assert known is None or order(now) >= order(known)
        known = now
    assert known is not None
    assert order(known) == (5, 3)
    assert known.fingerprint == "f"


@pytest.mark.parametrize("told", permutations(LIFE[4:7]))
def test_a_row_read_before_the_confirmation_does_not_undo_it(told: tuple[Purchase, ...]) -> None:
    """A reservation's row that arrives after the event once showed `reserved` for ever."""
    memory = PurchaseMemory()
    for state in told:
        memory.merge(state)
    known = memory.get(BUY)
    assert known is not None
    assert (known.status, known.version) == ("confirmed", 3)


@pytest.mark.parametrize("told", permutations((RESERVED, replace(RESERVED, hold_until_ms=Millis(60_000)))))
def test_a_reservation_and_its_row_are_one(told: tuple[Reserved, ...]) -> None:
    """The row knows until when the units are held."""
    known: Purchase | None = None
    for state in told:
        known = newest(known, state)
    assert isinstance(known, Reserved)
    assert known.hold_until_ms == 60_000


@pytest.mark.parametrize("told", permutations((REJECTED, RESERVED, Accepted(*body(FIRST), 0.0))))
def test_a_forgotten_rejection_gives_way_to_the_reservation(told: tuple[Purchase, ...]) -> None:
    """Versions 1 and 2, whichever is heard first."""
    known: Purchase | None = None
    for state in told:
        known = newest(known, state)
    assert known is RESERVED


def test_a_body_is_taken_over_only_from_the_same_position() -> None:
    """A rejected body of another send is not what was bought."""
    known = newest(Rejected(*body(FIRST, "another"), "sold_out", None), ordered("confirmed", 3))
    assert known.fingerprint == ""


def test_a_cancellation_asked_here_is_remembered_until_it_shows() -> None:
    """A confirmed order has something left to wait for then."""
    memory = PurchaseMemory()
    memory.merge(RESERVED)
    memory.cancel_asked(BUY)
    known = memory.merge(ordered("confirmed", 3))
    assert isinstance(known, Ordered)
    assert known.cancel_asked


@pytest.mark.parametrize("generation", [1, 2, 7])
def test_no_id_is_denied_that_is_to_be_remembered(generation: int) -> None:
    """Everything that held units, and the latest rejections: as many as two generations of the fold, wherever it is."""
    ids = RememberedIds(generation_max=generation, held_max=8)
    made = [PurchaseId(f"97ee-00-{number:032x}") for number in range(200)]
    for number in range(0, len(made), 2):
        ids.add_held(made[number])
        ids.add_rejected(0, made[number + 1])
        assert all(ids.may_know(0, one) for one in made[: number + 1 : 2])
        assert all(ids.may_know(0, one) for one in made[1 : number + 2 : 2][-2 * generation :])


def test_few_ids_are_remembered_that_were_never_given() -> None:
    """One false alarm costs one question to Postgres."""
    ids = RememberedIds(held_max=10_000)
    for number in range(30_000):
        ids.add_held(PurchaseId(f"97ee-00-{number:032x}"))
    alarms = sum(ids.may_know(0, PurchaseId(f"97ee-00-{number:032x}")) for number in range(1_000_000, 1_020_000))
    assert alarms < 20_000 * 0.005
