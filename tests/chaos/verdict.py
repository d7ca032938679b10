"""What is checked after each round: that everything drains, devstack's proof of each sale, and every rule of `replay`.

All of the log is judged each time, not only the round's part: what an earlier round broke late is found as well.
"""

import asyncio
import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncpg

from devstack.crowd import Journal
from devstack.processes import LIMITS
from devstack.proof import prove
from eventlog.kafka import consumer, watermarks
from eventlog.reader import CountingReader, Fenced
from inventory.domain import decide, evolve
from inventory.table import StockTable
from replay import live, provider_statement
from replay.evidence import Evidence
from replay.journal import Journal as Told
from replay.journal import Limits, from_crowd
from replay.judge import judge
from replay.rules import RULES, Rule
from stampede_schemas.codec import decode_decisions, decode_request, split_requests
from stampede_schemas.identifiers import Millis, Position
from stampede_schemas.topics import DECISIONS, PARTITIONS, REQUESTS
from tests.chaos.builds.rules import other_rules
from tests.chaos.money import facts, wrong_money
from tests.chaos.plan import ODD_PARTITION
from tests.support.stack import LocalStack

DRAIN_S_MAX = 60.0  # L2: after the last fault has healed
DRAIN_LOOK_S = 0.2
ONE_VERSION = {"S4", "S17"}  # speak of one set of rules; the product of two versions has a check of its own
BY_JOURNAL = {"S8", "S9", "S10", "S11"}
GATEWAYS, LOSSES_MAX = 2, 100  # more than a round can take from the counters: who is polite matters here
SAID_MAX = 3  # violations of a rule that are told

OPEN = """
SELECT (SELECT count(*) FROM purchases WHERE status = 'reserved') AS reserved,
       (SELECT count(*) FROM outbox) AS outbox,
       (SELECT count(*) FROM payments WHERE state IN ('due', 'unknown', 'void_due')) AS payments"""
PROGRESS = "SELECT partition, next_offset, source_offset FROM progress"


class Verdict(NamedTuple):
    """What is wrong, in sentences; how long draining took; what the log holds."""

    wrong: list[str]
    drained_s: float
    evidence: Evidence

    @property
    def void(self) -> int:
        """Fenced records in all partitions, since the log began."""
        return sum(len(partition.void) for partition in self.evidence.partitions.values())


async def check(running: LocalStack, journals: list[Journal], books: Path) -> Verdict:
    """Wait until all is quiet, then look at everything. The stack must be healed; `books` are the provider's."""
    wrong, drained_s = await at_rest(running)
    for journal in journals:
        proof = await prove(running.endpoints, journal)
        wrong += [f"{journal.sale.product_id}: {sentence}" for sentence in proof.wrong[:SAID_MAX]]
    evidence = await asyncio.to_thread(collect, running)
    told = [from_crowd(journal, Limits(LIMITS, GATEWAYS, LOSSES_MAX)) for journal in journals]
    wrong += await asyncio.to_thread(judged, evidence, told, BY_JOURNAL)
    assert evidence.database is not None
    wrong += list(wrong_money(facts(books), evidence.database.rows))[:SAID_MAX]
    return Verdict(wrong, drained_s, evidence)


async def at_rest(running: LocalStack) -> tuple[list[str], float]:
    """Wait until all is quiet: what is wrong about that, and how long it took in seconds."""
    began = time.monotonic()
    while busy := await _busy(running):
        if time.monotonic() - began > DRAIN_S_MAX:
            return [f"after {DRAIN_S_MAX:.0f} s without a fault: {busy}"], DRAIN_S_MAX
        await asyncio.sleep(DRAIN_LOOK_S)
    return [], time.monotonic() - began


async def _busy(running: LocalStack) -> str:
    """What is still on its way, or nothing."""
    ends = await asyncio.to_thread(_ends, running.kafka)
    connection = await asyncpg.connect(running.postgres, timeout=10)
    try:
        progress = {row["partition"]: row for row in await connection.fetch(PROGRESS)}
        still: dict[str, int] = dict((await connection.fetch(OPEN))[0])
    finally:
        await connection.close()
    for number, (requests, decisions) in ends.items():
        row = progress[number]
        if row["next_offset"] < decisions:
            return f"decisions/{number} ends at {decisions}, of which {row['next_offset']} are in Postgres"
        if row["source_offset"] + 1 < requests:
            return f"requests/{number} ends at {requests}, of which {row['source_offset'] + 1} are decided"
    return ", ".join(f"{count} {what}" for what, count in still.items() if count)


def _ends(kafka: str) -> dict[int, tuple[int, int]]:
    client = consumer(kafka)
    try:
        return {
            number: (watermarks(client, REQUESTS.name, number)[1], watermarks(client, DECISIONS.name, number)[1])
            for number in range(PARTITIONS)
        }
    finally:
        client.close()


def collect(running: LocalStack) -> Evidence:
    """What `replay verify` looks at, in its order: tables, rows, and the log last."""
    addresses = live.addresses(running.layout.endpoints)
    states = live.states(addresses.inventory)
    database = live.database(addresses.postgres)
    evidence = live.log(addresses.kafka)
    evidence.states, evidence.database = states, database
    evidence.payments = provider_statement.beside(running.layout.endpoints)
    return evidence


def judged(evidence: Evidence, journals: Iterable[Told], by_journal: set[str]) -> list[str]:
    """Every rule of `replay`; those `by_journal` for each journal, of a product each."""
    whole = [rule for rule in RULES if rule.NAME not in ONE_VERSION | BY_JOURNAL]
    wrong = _violations(evidence, whole)
    one_version = {number: part for number, part in evidence.partitions.items() if number != ODD_PARTITION}
    plain = dataclasses.replace(evidence, partitions=one_version)
    wrong += _violations(plain, [rule for rule in RULES if rule.NAME in ONE_VERSION])
    for journal in journals:
        told = dataclasses.replace(evidence, journal=journal)
        wrong += _violations(told, [rule for rule in RULES if rule.NAME in by_journal])
    return wrong + either_version(evidence)


def _violations(evidence: Evidence, rules: Iterable[Rule]) -> list[str]:
    return [
        f"{found.name} is violated {found.violations} times: {violation.at}: {violation.what}"
        for found in judge(evidence, tuple(rules))
        for violation in found.first[:SAID_MAX]
    ]


def either_version(evidence: Evidence) -> list[str]:
    """Every decision about the products of two versions is what one of the two makes of the very history before it."""
    partition = evidence.partitions[ODD_PARTITION]
    asked = {record.offset: record for record in partition.requests}
    table, reader = StockTable(ODD_PARTITION), CountingReader()
    for record in partition.decisions:
        found = reader.read(record.offset, record.value)
        if isinstance(found, Fenced):
            continue
        request = asked[found.source_offset]
        pieces = split_requests(request.value)
        for index, (said, raw) in enumerate(zip(decode_decisions(found), pieces, strict=True)):
            allowed = [rules(table, decode_request(raw), Millis(request.at_ms)) for rules in (decide, other_rules)]
            if said not in allowed:
                place = f"requests/{ODD_PARTITION}/{request.offset}/{index}"
                return [f"{place}: decided {said}, which neither version makes of the history before it"]
            evolve(table, said, Position(ODD_PARTITION, request.offset, index))
    return []
