"""What a gateway remembers of purchases, what it forgets, and what it keeps of the forgotten."""

from gateway.read_side.purchase_memory import PurchaseMemory, accepted, decided
from gateway.read_side.purchase_state import Accepted, Answered, Rejected
from stampede_schemas.identifiers import Position, PurchaseId
from tests.support.builders.gateway import rejected, reserved, wanted


def acknowledged(memory: PurchaseMemory, purchase: str, offset: int) -> None:
    """The log acknowledged this purchase here."""
    memory.accepted(accepted(wanted(purchase), Position(0, offset, 0), 0.0))


def test_the_floor_rises_with_what_is_forgotten() -> None:
    """A missing row proves nothing at an older progress."""
    memory = PurchaseMemory(purchases_max=2)
    memory.start_from(0, 4)
    for offset, name in enumerate("abc", 5):
        memory.decided(decided(reserved(name), Position(0, offset, 0), None))
    assert memory.get("a") is None
    assert memory.floor(0) == 5
    assert memory.floor(1) == -1
    assert all(memory.ids.may_know(0, PurchaseId(name)) for name in "abc")


def test_memory_is_bounded_and_forgets_what_was_untouched_for_longest() -> None:
    """A decision touches its purchase."""
    memory = PurchaseMemory(purchases_max=3)
    for offset, name in enumerate("abc"):
        acknowledged(memory, name, offset)
    memory.decided(decided(reserved("a"), Position(0, 0, 0), None))
    acknowledged(memory, "d", 9)
    assert memory.get("b") is None
    assert memory.get("a") is not None


def test_what_the_decisions_pass_without_deciding_it_was_lost() -> None:
    """Its record was acknowledged, and another one stands in its place."""
    memory = PurchaseMemory()
    for offset, name in enumerate("abc", 3):
        acknowledged(memory, name, offset)
    memory.decided(decided(reserved("a"), Position(0, 3, 0), None))
    assert memory.passed(0, 4) == ["b"]
    assert memory.get("b") is None
    assert isinstance(memory.get("c"), Accepted)
    assert memory.passed(0, 4) == []


def test_an_acknowledgement_of_a_place_that_decisions_have_passed_is_of_something_lost() -> None:
    """Another record stands there by now. Nothing would ever decide it, and nothing else would find out."""
    memory = PurchaseMemory()
    memory.passed(0, 4)
    assert not memory.accepted(accepted(wanted("a"), Position(0, 4, 0), 0.0))
    assert memory.get("a") is None
    assert memory.accepted(accepted(wanted("a"), Position(0, 5, 0), 0.0))


def test_what_stood_behind_the_end_was_lost_and_what_came_later_was_not() -> None:
    """The log lost its tail: asked for after offset 5 was acknowledged it ends at 4; offset 6 came meanwhile."""
    memory = PurchaseMemory()
    for offset, name in enumerate("abcd", 3):
        acknowledged(memory, name, offset)
    assert memory.tail_lost(0, 4, 6) == ["b", "c"]
    assert [memory.get(name) is None for name in "abcd"] == [False, True, True, False]
    assert memory.passed(0, 6) == ["a", "d"]


def test_a_late_acknowledgement_does_not_undo_a_decision() -> None:
    """And nothing is taken for lost."""
    memory = PurchaseMemory()
    memory.decided(decided(reserved(), Position(0, 3, 0), None))
    acknowledged(memory, "buy", 3)
    known = memory.get("buy")
    assert known is not None
    assert known.status == "reserved"
    assert memory.passed(0, 9) == []


def test_a_rejection_never_replaces_what_held_units() -> None:
    """Its record was forgotten, its id was not: only the row tells. Also where the repeat was acknowledged here."""
    for repeat_acknowledged in (False, True):
        memory = PurchaseMemory()
        memory.ids.add_held(PurchaseId("buy"))
        if repeat_acknowledged:
            acknowledged(memory, "buy", 7)
        memory.decided(decided(rejected(reason="closed"), Position(0, 7, 0), None))
        assert isinstance(memory.get("buy"), Answered)
    fresh = PurchaseMemory()
    fresh.decided(decided(rejected(), Position(0, 7, 0), None))
    assert isinstance(fresh.get("buy"), Rejected)


def test_an_ignored_repeat_names_the_body_only_if_it_was_compared() -> None:
    """By the log, for the very request that was acknowledged here."""
    for mismatch, at, body in ((False, 7, "f"), (True, 7, ""), (False, 8, "")):
        memory = PurchaseMemory()
        acknowledged(memory, "buy", 7)
        memory.ignored(PurchaseId("buy"), Position(0, at, 0), Position(0, 1, 0), mismatch=mismatch)
        known = memory.get("buy")
        assert isinstance(known, Answered)
        assert known.mine is not None
        assert (known.mine.fingerprint, known.position, known.retired) == (body, Position(0, 1, 0), False)
    memory = PurchaseMemory()
    acknowledged(memory, "buy", 7)
    memory.ignored(PurchaseId("buy"), Position(0, 7, 0), None, mismatch=False)
    known = memory.get("buy")
    assert isinstance(known, Answered)
    assert (known.retired, known.position) == (True, Position(0, 7, 0))
