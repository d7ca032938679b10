"""The money, by the provider's own books and nobody else's: what was taken and kept is what was sold."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from replay.evidence import Row

BOOKS = "payments.jsonl"


def facts(books: Path) -> Iterator[dict[str, Any]]:
    """The lines of the books, in order; a line that a dying writer left half is no fact."""
    if not books.exists():
        return
    for line in books.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def wrong_money(told: Iterable[Mapping[str, Any]], rows: Mapping[str, Row]) -> Iterator[str]:
    """A sentence for each purchase whose money is not where its row says (S21). Nothing may be on its way any more."""
    kept: dict[str, int] = defaultdict(int)
    voided: set[str] = set()
    for fact in told:
        purchase_id, amount = fact["purchase_id"], fact["amount_minor"]
        match fact["event"]:
            case "captured":
                kept[purchase_id] += amount
                if purchase_id in voided:
                    yield f"S21: {amount} was captured for {purchase_id} after a void"
            case "refunded":
                kept[purchase_id] -= amount
            case "voided":
                voided.add(purchase_id)
    for purchase_id in kept.keys() | rows.keys():
        row = rows.get(purchase_id)
        due = row.quantity * (row.unit_price_minor or 0) if row is not None and row.status == "confirmed" else 0
        if kept[purchase_id] != due:
            what = "has no row" if row is None else f"is {row.status}"
            yield f"S21: {kept[purchase_id]} was kept for {purchase_id}, which {what}: {due} is due"
