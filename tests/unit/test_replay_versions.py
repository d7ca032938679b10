"""What the checker makes of rejections that are forgotten, of ids that name a partition, and of older sales."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from replay.contract import REJECTED_GENERATION, OrderEvent, home_of
from replay.evidence import Evidence, Partition, State
from replay.journal import Attempt, Journal
from replay.judge import judge
from replay.rules import RULES
from replay.rules.s12_same_tables import fold
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import ReleaseReason
from stampede_schemas.topics import partition_of
from tests.support.builders.replay import SmallSale, change_row, edit, rewrite
from tests.support.builders.requests import ELSEWHERE, LAMP, listing, purchase, release, restock, retire
from tests.support.builders.tampering import decisions_at, told

LOST, WON = (0, 1, 0), (0, 7, 0)  # where the purchase was rejected, and where it won
BETWEEN = 4  # rejections between the two


def second_chance() -> SmallSale:
    """Ann is rejected; four others are too, after which a fold of small memory has forgotten her; then she wins."""
    small = SmallSale(generation=2)
    small.ask(listing(stock=0))
    small.ask(purchase("a", "ann"))
    for name in ("b", "c", "d", "e"):
        small.ask(purchase(name, name))
    small.ask(restock(1))
    small.ask(purchase("a", "ann", fingerprint="g"))
    return small


def evidence_of(small: SmallSale, *polled: tuple[int, str]) -> Evidence:
    """What is known of a sale; ann followed her purchase and saw this."""
    evidence = small.evidence()
    accepted = [told(202, purchase_id="a", status="pending")]
    evidence.journal = Journal(LAMP, [Attempt("ann", "k", "a", "confirmed", False, accepted, list(polled), 2)])
    return evidence


def violated(evidence: Evidence) -> set[str]:
    """The rules that do not hold. S8 and S11 are about other things than are told here."""
    rules = tuple(rule for rule in RULES if rule.NAME not in {"S8", "S11", "S13"})
    return {found.name for found in judge(evidence, rules) if found.verdict == "violated"}


def as_rejected(evidence: Evidence) -> None:
    """Ann's row is that of her rejection."""
    change_row(
        evidence, "a", status="rejected", reason="sold_out", place=LOST, version=1, fingerprint="f",
        reservation_no=None, unit_price_minor=None, currency=None, hold_until_ms=None, returned=False,
    )  # fmt: skip


def applied_up_to(evidence: Evidence, source_offset: int) -> None:
    """Postgres has applied what came up to this request."""
    database = evidence.database
    assert database is not None
    applied: Any = database.applied[0]._replace(next_offset=source_offset + 1, source_offset=source_offset)
    evidence.database = replace(database, applied={0: applied._replace(anchor=source_offset)})


def test_a_rejection_that_was_forgotten_may_become_a_reservation() -> None:
    """Followed from the first answer to the last; the row is the reservation's."""
    assert violated(evidence_of(second_chance(), (1, "rejected"), (2, "reserved"), (3, "confirmed"))) == set()


def test_generations_are_those_of_the_inventory() -> None:
    """A model that remembers longer expects another answer, and so does the fold of the log."""
    evidence = evidence_of(second_chance())
    evidence.generation = 3
    assert violated(evidence) == {"S4", "S12"}
    assert Evidence({}, 0, "").generation == REJECTED_GENERATION == 250_000


@pytest.mark.parametrize(("generation", "holds"), [(BETWEEN - 1, True), (BETWEEN, False)])
def test_a_rejection_counts_until_more_was_rejected_than_is_remembered(generation: int, holds: bool) -> None:
    """S10 asks the log how many rejections stand between the two."""
    evidence = evidence_of(second_chance(), (1, "rejected"), (2, "reserved"))
    evidence.generation = generation
    assert ("S10" not in violated(evidence)) is holds


def test_a_win_is_never_followed_by_the_rejection() -> None:
    """The other way round it is no second chance."""
    assert violated(evidence_of(second_chance(), (2, "reserved"), (3, "rejected"))) == {"S10"}
    assert violated(evidence_of(second_chance(), (2, "rejected"), (2, "reserved"))) == {"S10"}


def test_the_row_is_the_reservation_once_it_is_applied() -> None:
    """Until then it may be the rejection; a row that stays there for good is found by its unit, too."""
    evidence = evidence_of(second_chance())
    as_rejected(evidence)
    assert violated(evidence) >= {"S5", "S7"}
    applied_up_to(evidence, WON[1] - 1)
    assert "S7" not in violated(evidence)


def test_of_two_rejections_the_first_one_stays() -> None:
    """It is no version, and no news, that a purchase is rejected again."""
    small = SmallSale(generation=1)
    small.ask(listing(stock=0))
    for name in ("a", "b", "c", "a"):
        small.ask(purchase(name, "ann"))
    evidence = small.evidence()
    assert [type(decision).__name__ for _, decision in small.decided][1:] == ["Rejected"] * 4
    assert violated(evidence) == set()
    change_row(evidence, "a", place=(0, 4, 0))
    assert violated(evidence) == {"S7"}


@pytest.mark.parametrize(("told_before", "version", "holds"), [(3, 4, True), (3, 5, True), (9, 5, False)])
def test_a_restored_row_may_have_a_higher_version(told_before: int, version: int, holds: bool) -> None:
    """If events of its purchase were told before, with lower versions; nothing else lifts the version of a hold."""
    evidence = evidence_of(second_chance())
    now = evidence.taken_at_ms
    change_row(evidence, "a", status="reserved", version=version, created_at_ms=now, hold_until_ms=now + 60_000)
    evidence.journal = None
    assert violated(evidence) == {"S7"}
    evidence.orders = [OrderEvent("OrderConfirmed", "a", told_before, "confirmed")]
    assert (violated(evidence) == set()) is holds


# ---- ids


@pytest.mark.parametrize(
    ("purchase_id", "home"),
    [
        (f"k7f3-00-{'0' * 32}", 0),
        (f"k7f3-0b-{'9' * 32}", 11),
        (f"k7f3-{'0' * 32}", None),
        (f"k7f3-0B-{'0' * 32}", None),
        (f"k7f3-00-{'0' * 31}", None),
        (f"k7f3-00-{'0' * 33}", None),
        ("p-1", None),
    ],
)
def test_an_id_names_its_partition_or_none(purchase_id: str, home: int | None) -> None:
    """Ids of the first form name none, and are read like any text."""
    assert home_of(purchase_id) == home
    small = SmallSale()
    small.ask(listing())
    small.ask(purchase(purchase_id))
    assert violated(small.evidence()) == ({"S9"} if home else set())


def test_an_id_of_another_partition_is_found_in_every_answer() -> None:
    """Also where the purchase was only ignored."""
    small = SmallSale()
    small.ask(listing(), retire())
    small.ask(purchase(f"k7f3-01-{'0' * 32}"))
    assert violated(small.evidence()) == {"S9"}


def test_a_key_is_one_purchase_for_each_product() -> None:
    """For two products it is two purchases; for one product it is one, told in the same bytes."""
    evidence = evidence_of(second_chance())
    assert evidence.journal is not None
    (ann,) = evidence.journal.attempts
    answers = [told(202, purchase_id="a", product_id=LAMP), told(202, purchase_id="x", product_id="another")]
    ann.answers = answers
    evidence.journal.attempts = [ann]
    assert violated(evidence) == set()
    answers[1] = told(202, purchase_id="x", product_id=LAMP)
    assert violated(evidence) == {"S9"}


# ---- sales from before


def drop_mismatch(content: dict[str, Any]) -> None:
    """The first version had no such field."""
    for said in content["decisions"]:
        said.pop("mismatch", None)


def as_before(evidence: Evidence) -> None:
    """Every `Ignored` is of the first version, and a retired product rejected what was asked of it."""
    partition = evidence.partitions[0]
    for offset in range(len(partition.decisions)):
        for index, said in enumerate(decisions_at(evidence, offset)):
            if said["type"] == "Ignored" and said["reason"] == "retired":
                rejected = {"type": "Rejected", "buyer_id": "ann", "quantity": 1, "payment_method": "card"}
                rewrite(evidence, offset, index, **rejected, v=1, reason="closed", fingerprint="f", available_after=2)
            elif said["type"] == "Ignored":
                rewrite(evidence, offset, index, v=1)
        edit(evidence, offset, drop_mismatch)
    last = len(partition.requests) - 1
    digest = fold(Partition(0, decisions=list(partition.decisions)), last)
    assert isinstance(digest, str)
    evidence.states = [State(0, last, digest)]


def test_a_sale_of_the_first_rules_still_holds() -> None:
    """Nothing was said of bodies, and whatever was asked of a retired product was rejected, repeats as well."""
    small = SmallSale()
    small.ask(listing(stock=3), purchase("a", "ann"))
    small.ask(purchase("a", "ann", fingerprint="g"))
    small.ask(retire(), purchase("a", "ann"))
    evidence = small.evidence()
    as_before(evidence)
    assert [said["type"] for said in decisions_at(evidence, 2)] == ["ProductRetired", "Rejected"]
    assert violated(evidence) == set()


def test_rules_change_at_the_first_answer_of_the_second_version() -> None:
    """After it a retired product rejects nothing, and a repeat is told whether its body differs."""
    small = SmallSale()
    small.ask(listing(stock=3), purchase("a", "ann"), purchase("a", "ann"))
    small.ask(purchase("a", "ann", fingerprint="g"))
    small.ask(retire(), purchase("a", "ann"))
    evidence = small.evidence()
    as_before(evidence)
    rewrite(evidence, 0, 2, v=2)
    assert violated(evidence) == {"S4"}


@pytest.mark.parametrize(("reason", "holds"), [("already_decided", True), ("cancelled", False)])
def test_an_older_id_may_stand_in_two_partitions(reason: ReleaseReason, holds: bool) -> None:
    """It did not depend on the product: the second reservation was given back as what never counted."""
    here, there = SmallSale(), SmallSale(partition_of(ELSEWHERE))
    here.ask(listing(), purchase("a"))
    there.ask(listing(ELSEWHERE), purchase("a", product=ELSEWHERE))
    back = release((0, 1), "a", ELSEWHERE, reason)
    there.ask(msgspec.structs.replace(back, reservation=Position(there.partition, 0, 1)))
    evidence = here.evidence()
    evidence.journal = None
    evidence.partitions |= there.evidence().partitions
    assert ("S9" not in violated(evidence)) is holds


@pytest.mark.parametrize(("reason", "holds"), [("already_decided", True), ("cancelled", False)])
def test_a_second_reservation_that_was_given_back_as_such_never_counted(reason: ReleaseReason, holds: bool) -> None:
    """An older order-writer did so, whose row kept the rejection: old logs hold such pairs."""
    small = second_chance()
    small.ask(release((7, 0), "a", reason=reason))
    evidence = small.evidence()
    as_rejected(evidence)
    assert violated(evidence) == (set() if holds else {"S7"})
