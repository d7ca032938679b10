"""What is checked after each round: that everything drains, and every rule of `replay`.

All of the log is judged each time, not only the round's part: what an earlier round broke late is found as well.
"""

import asyncio
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from devstack.processes import LIMITS
from devstack.proof import BY_JOURNAL, violations
from eventlog.reader import CountingReader, Fenced
from inventory.domain import decide, evolve
from inventory.table import StockTable
from replay import live, rest
from replay.evidence import Evidence
from replay.journal import Journal, Limits
from replay.rules import RULES
from stampede_schemas.codec import decode_decisions, decode_request, split_requests
from stampede_schemas.identifiers import Millis, Position
from tests.chaos.builds.rules import other_rules
from tests.chaos.plan import ODD_PARTITION
from tests.support.processes.stack import LocalStack

DRAIN_S_MAX = 60.0  # L2: after the last fault has healed
ONE_VERSION = {"S4", "S17"}  # speak of one set of rules; the product of two versions has a check of its own
GATEWAYS, LOSSES_MAX = 2, 100  # more than a round can take from the counters: who is polite matters here


class Verdict(NamedTuple):
    """What is wrong, in sentences; how long draining took; what the log holds."""

    wrong: list[str]
    drained_s: float
    evidence: Evidence

    @property
    def void(self) -> int:
        """Fenced records in all partitions, since the log began."""
        return sum(len(partition.void) for partition in self.evidence.partitions.values())


async def check(running: LocalStack, journals: list[Journal]) -> Verdict:
    """Wait until all is quiet, then look at everything. The stack must be healed."""
    wrong, drained_s = await at_rest(running)
    evidence = await asyncio.to_thread(collect, running)
    evidence.at_rest = not wrong
    told = [dataclasses.replace(journal, limits=Limits(LIMITS, GATEWAYS, LOSSES_MAX)) for journal in journals]
    wrong += await asyncio.to_thread(judged, evidence, told, BY_JOURNAL)
    return Verdict(wrong, drained_s, evidence)


async def at_rest(running: LocalStack) -> tuple[list[str], float]:
    """Wait until all is quiet: what is wrong about that, and how long it took in seconds."""
    return await rest.wait(live.addresses(running.layout.endpoints), DRAIN_S_MAX)


def collect(running: LocalStack) -> Evidence:
    """What `replay verify` looks at."""
    return live.whole_system(running.layout.endpoints)


def judged(evidence: Evidence, journals: Iterable[Journal], by_journal: frozenset[str]) -> list[str]:
    """Every rule of `replay`; those `by_journal` for each journal, of a product each."""
    whole = [rule for rule in RULES if rule.NAME not in ONE_VERSION | BY_JOURNAL]
    wrong = violations(evidence, whole)
    one_version = {number: part for number, part in evidence.partitions.items() if number != ODD_PARTITION}
    plain = dataclasses.replace(evidence, partitions=one_version)
    wrong += violations(plain, [rule for rule in RULES if rule.NAME in ONE_VERSION])
    for journal in journals:
        told = dataclasses.replace(evidence, journal=journal)
        wrong += violations(told, [rule for rule in RULES if rule.NAME in by_journal])
    return wrong + either_version(evidence)


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
