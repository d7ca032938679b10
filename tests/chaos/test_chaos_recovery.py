"""How recovery is read from the log: from a kill to its successor, and only for a kill that no other followed."""

from tests.chaos.arena import Kill
from tests.chaos.recovery import Recovery, recoveries
from tests.support.builders.replay import BEGAN_MS, SmallSale
from tests.support.builders.requests import listing, purchase


def killed(after_ms: int, *, clean: bool = False) -> Kill:
    """The owner of the sale's partition dies so long after the sale began (a record comes every 10 ms)."""
    return Kill(BEGAN_MS + after_ms, "inventory-0", clean, frozenset({0}))


def sold() -> SmallSale:
    """Two records decided by one load, then two by its successor: appended at 5, 15, 25 and 35 ms."""
    sale = SmallSale()
    sale.ask(listing())
    sale.ask(purchase("a"))
    sale.take_over()
    sale.ask(purchase("b"))
    sale.ask(purchase("c"))
    return sale


def test_it_lasts_from_the_kill_to_the_first_record_of_another_load() -> None:
    """What the victim decided itself does not count as recovery."""
    evidence = sold().evidence()
    assert list(recoveries(evidence, [killed(7)])) == [Recovery(False, 0.018)]
    assert list(recoveries(evidence, [killed(16, clean=True)])) == [Recovery(True, 0.009)]


def test_a_kill_before_the_successor_decided_anything_measures_nothing() -> None:
    """Only the last of a chain of kills tells how long a recovery takes."""
    found = list(recoveries(sold().evidence(), [killed(7), killed(16)]))
    assert found == [Recovery(False, 0.009)]
