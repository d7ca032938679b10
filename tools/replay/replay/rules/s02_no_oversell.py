"""Sold and held units are never more than listed and restocked."""

from collections import defaultdict

from replay.evidence import Evidence, Findings, Violation

NAME = "S2"
NEEDS: tuple[str, ...] = ("database",)
LOOKS_AT = "rows"


def check(evidence: Evidence) -> Findings:
    """Add up the rows of each product against its row in the catalogue."""
    assert evidence.database is not None
    taken: defaultdict[str, int] = defaultdict(int)
    for row in evidence.database.rows.values():
        if row.status in {"confirmed", "reserved"}:
            taken[row.product_id] += row.quantity
    for product_id, units in taken.items():
        product = evidence.database.products.get(product_id)
        stock = product.stock if product else 0
        if units > stock:
            yield Violation(f"products/{product_id}", f"{units} units are sold or held, of {stock}")
    return len(evidence.database.rows)
