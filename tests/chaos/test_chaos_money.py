"""The money check, which must see each way in which money can be where it should not be."""

from typing import Any

import pytest

from replay.evidence import Row
from tests.chaos.money import wrong_money


def row(status: str, purchase_id: str = "p") -> Row:
    """One unit at 1,990."""
    price = None if status == "rejected" else 1_990
    return Row(purchase_id, "b", "tea", 1, status, None, 1, price, "EUR", "ok", "f", (0, 0, 0), None, False, 1, 0, 0)


def fact(event: str, amount_minor: int = 1_990) -> dict[str, Any]:
    """A line of the provider's books."""
    return {"event": event, "purchase_id": "p", "amount_minor": 0 if event == "voided" else amount_minor}


@pytest.mark.parametrize(
    ("events", "status"),
    [
        (["captured"], "confirmed"),
        ([], "released"),
        ([], "rejected"),
        (["voided"], "released"),
        (["captured", "refunded", "voided"], "released"),
    ],
)
def test_money_that_is_where_it_should_be(events: list[str], status: str) -> None:
    """Kept for what is sold, and for nothing else."""
    assert list(wrong_money(map(fact, events), {"p": row(status)})) == []


@pytest.mark.parametrize(
    ("events", "status", "said"),
    [
        ([], "confirmed", "S21: 0 was kept for p, which is confirmed: 1990 is due"),
        (["captured"], "released", "S21: 1990 was kept for p, which is released: 0 is due"),
        (["captured", "captured"], "confirmed", "S21: 3980 was kept for p, which is confirmed: 1990 is due"),
        (["captured", "refunded", "refunded"], "released", "S21: -1990 was kept for p, which is released: 0 is due"),
        (["voided", "captured"], "confirmed", "S21: 1990 was captured for p after a void"),
        (["captured", "refunded", "voided"], "confirmed", "S21: 0 was kept for p, which is confirmed: 1990 is due"),
    ],
)
def test_money_that_is_not(events: list[str], status: str, said: str) -> None:
    """Each is told by purchase."""
    assert list(wrong_money(map(fact, events), {"p": row(status)})) == [said]


def test_money_of_a_purchase_without_a_row_is_told() -> None:
    """The provider knows one that the database does not."""
    assert list(wrong_money([fact("captured")], {})) == ["S21: 1990 was kept for p, which has no row: 0 is due"]
