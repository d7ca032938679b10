"""The proof of a sale that a load generator drove: every rule of `replay`, and the figures a demonstration shows.

Judges nothing itself. It waits until nothing of the product is on its way any more, so that "not yet" is no excuse.
"""

import asyncio
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from replay import live, rest
from replay.evidence import Evidence
from replay.journal import Journal
from replay.judge import Finding, judge
from replay.ledger import Stocks
from replay.rules import RULES, Rule
from stampede_schemas.topics import partition_of

SETTLE_S_MAX = 30.0
SAID_MAX = 3  # violations of a rule that are told
BY_JOURNAL = frozenset({"S8", "S9", "S10", "S11"})  # rules that speak of the journal's product alone
AT_REST = BY_JOURNAL | {"S12"}  # of the product's partition
MAY_BE_MISSING = frozenset({"limits", "canaries"})  # a driver need not know the limits, nor plant words to look for


class Proof(NamedTuple):
    """What the log, the database and the tables say of one product, and a sentence for each thing that is wrong.

    `released` are purchases with their reasons; `digest` is that of the table of the product's partition.
    """

    confirmed: int
    held: int
    rejected: int
    released: dict[str, str]
    oversold: int
    digest: str
    last_durable_ms: int | None
    wrong: list[str]


async def prove(endpoints: Path, journal: Journal) -> Proof:
    """Wait for the product to come to rest (at most 30 s), then look at everything. `endpoints` is the stack's file."""
    addresses = live.addresses(endpoints)
    wrong, _ = await rest.wait(addresses, SETTLE_S_MAX, journal.product_id)
    evidence = await asyncio.to_thread(live.whole_system, endpoints)
    evidence.journal = journal
    wrong += await asyncio.to_thread(violations, evidence, [rule for rule in RULES if rule.NAME not in BY_JOURNAL])
    tables = [state for state in evidence.states or () if state.partition == partition_of(journal.product_id)]
    resting = dataclasses.replace(evidence, at_rest=not wrong, states=tables)
    wrong += await asyncio.to_thread(violations, resting, [rule for rule in RULES if rule.NAME in AT_REST])
    return _figures(evidence, journal.product_id, wrong)


def violations(evidence: Evidence, rules: Iterable[Rule]) -> list[str]:
    """A sentence for each of the first places that show a violation, and for each rule that could not be checked."""
    return [sentence for found in judge(evidence, tuple(rules)) for sentence in _sentences(found)]


def _sentences(found: Finding) -> list[str]:
    if needed := sorted({*found.missing} - MAY_BE_MISSING):
        return [f"{found.name} could not be checked without {' and '.join(needed)}"]
    first = found.first[:SAID_MAX]
    return [f"{found.name} is violated {found.violations} times: {one.at}: {one.what}" for one in first]


def _figures(evidence: Evidence, product_id: str, wrong: list[str]) -> Proof:
    number, database = partition_of(product_id), evidence.database
    assert database is not None
    rows = [row for row in database.rows.values() if row.product_id == product_id]
    confirmed = sum(row.quantity for row in rows if row.status == "confirmed")
    held = sum(row.quantity for row in rows if row.status == "reserved")
    answers = [answer for _, answer in evidence.partitions[number].answers() if answer.product_id == product_id]
    stocks, lowest = Stocks(), 0
    for answer in answers:
        if (stock_now := stocks.of(answer)) is not None:
            stock_now.move(answer)
            lowest = min(lowest, stock_now.left)
    listed = sum(stock_now.stock for stock_now in stocks.values())
    return Proof(
        confirmed=confirmed,
        held=held,
        rejected=sum(answer.type == "Rejected" for answer in answers),
        released={answer.purchase_id: answer.reason or "" for answer in answers if answer.type == "Released"},
        oversold=max(0, confirmed + held - listed, -lowest),
        digest=next((state.sha256 for state in evidence.states or () if state.partition == number), ""),
        last_durable_ms=max((row.updated_at_ms for row in rows if row.status == "confirmed"), default=None),
        wrong=wrong,
    )
