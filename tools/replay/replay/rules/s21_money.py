"""Captured less refunded is the price of what is confirmed, per purchase; nothing is captured after a void.

The provider statement is set against the rows. It is read after the rows and may be newer: what happened to a
purchase since then, and what is not yet to have ended, is left alone.
"""

from collections import defaultdict

from replay.evidence import Evidence, Findings, Payment, Row, Violation

NAME = "S21"
NEEDS: tuple[str, ...] = ("database", "payments")
LOOKS_AT = "payments"


def check(evidence: Evidence) -> Findings:
    """Add up each purchase's facts in the order of the statement."""
    database = evidence.database
    assert database is not None
    assert evidence.payments is not None
    facts: defaultdict[str, list[Payment]] = defaultdict(list)
    for fact in evidence.payments:
        facts[fact.purchase_id].append(fact)
    for purchase_id, row in database.rows.items():
        if row.status == "confirmed":
            facts[purchase_id]  # the money must be in the statement, whatever else is
    for purchase_id, told in facts.items():
        row_now = database.rows.get(purchase_id)
        if wrong := _after_void(told) or _balance(told, row_now, database.now_ms - evidence.settle_ms):
            yield Violation(f"payments/{told[-1].line if told else 0}", f"{purchase_id}: {wrong}")
    return len(facts)


def _after_void(told: list[Payment]) -> str:
    events = [fact.event for fact in told]
    late = "voided" in events and "captured" in events[events.index("voided") :]
    return "captured after it was voided" if late else ""


def _balance(told: list[Payment], row: Row | None, settled_ms: int) -> str:
    """What is wrong with the sum, per currency, or nothing; what changed after `settled_ms` may not be at its end."""
    sums: defaultdict[str, int] = defaultdict(int)
    for fact in told:
        if fact.event in {"captured", "refunded"}:
            sums[fact.currency] += fact.amount_minor if fact.event == "captured" else -fact.amount_minor
    held = {currency: amount for currency, amount in sums.items() if amount}
    if row is not None and row.status == "confirmed":
        price = {row.currency or "": (row.unit_price_minor or 0) * row.quantity}
        given_back_since = told and told[-1].event != "captured" and told[-1].at_ms > settled_ms
        if held != {c: a for c, a in price.items() if a} and not given_back_since:
            return f"confirmed for {_said(price)}, and {_said(held)} was taken for it"
        return ""
    if not held or (row is not None and row.status == "reserved"):
        return ""  # nobody's money, or S5 says when a hold has been open for too long
    changed_ms = max([told[-1].at_ms, *([row.updated_at_ms] if row else [])])
    if changed_ms > settled_ms:
        return ""  # its refund may be on its way
    return f"{row.status if row else 'there is no order'}, and {_said(held)} was never given back"


def _said(amounts: dict[str, int]) -> str:
    return " and ".join(f"{amount} {currency}" for currency, amount in sorted(amounts.items()) if amount) or "nothing"
