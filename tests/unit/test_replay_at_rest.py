"""What is judged without patience once nothing is on its way any more."""

import pytest

from replay.evidence import Evidence
from replay.judge import judge
from replay.rules import RULES
from tests.support.builders.replay import SmallSale, change_row
from tests.support.builders.requests import listing, purchase, release
from tests.support.builders.tampering import Tamper, attempt, hold, unpay


def sale() -> Evidence:
    """Two units: ann's comes back and is refunded, bob keeps his. Everything happened a moment ago."""
    small = SmallSale()
    small.ask(listing(stock=2))
    small.ask(purchase("a", "ann"), purchase("b", "bob"))
    small.ask(release((1, 0), "a", reason="payment_declined"))
    evidence = small.evidence()
    assert evidence.database is not None
    assert evidence.payments is not None
    now = evidence.database.now_ms
    for row in evidence.database.rows:
        change_row(evidence, row, updated_at_ms=now)
    evidence.payments = [fact._replace(at_ms=now) for fact in evidence.payments]
    return evidence


def violated(evidence: Evidence) -> set[str]:
    """The rules that do not hold; S13 starts processes."""
    rules = tuple(rule for rule in RULES if rule.NAME != "S13")
    return {found.name for found in judge(evidence, rules) if found.verdict == "violated"}


def test_a_sound_sale_holds_at_rest() -> None:
    """Also with everything that its buyers were told at last."""
    evidence = sale()
    attempt(evidence, 0, outcome="released")
    attempt(evidence, 1, outcome="confirmed")
    assert violated(evidence) == set()
    evidence.at_rest = True
    assert violated(evidence) == set()


def refund_again(evidence: Evidence) -> None:
    """The provider refunded ann's purchase once more."""
    assert evidence.payments is not None
    [refund] = [fact for fact in evidence.payments if (fact.event, fact.purchase_id) == ("refunded", "a")]
    evidence.payments.insert(evidence.payments.index(refund), refund)


LATE: dict[str, tuple[Tamper, str]] = {
    "units that are held": (lambda e: hold(e, "b", 2), "S5"),
    "money that was not given back": (lambda e: unpay(e, "refunded", "a"), "S21"),
    "money that was given back twice": (refund_again, "S21"),
    "told it is sold, and it came back": (lambda e: attempt(e, 0, outcome="confirmed"), "S10"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_may_still_come_to_its_end_is_wrong_at_rest_only(name: str) -> None:
    """Amid a sale it may be on its way."""
    tamper, rule = LATE[name]
    evidence = sale()
    tamper(evidence)
    assert rule not in violated(evidence)
    evidence.at_rest = True
    assert rule in violated(evidence)
