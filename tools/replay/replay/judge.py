"""Runs the rules over evidence, one after the other, and keeps what each one found. Knows no rule by name."""

import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

from replay.evidence import Evidence, Violation
from replay.rules import RULES, Rule, claim

KEPT_MAX = 20  # violations of one rule that are kept; all are counted

Verdict = Literal["holds", "violated", "not looked at"]


class Finding(NamedTuple):
    """What one rule found. `missing` names the evidence it would have needed."""

    name: str
    claim: str
    looked: int
    looks_at: str
    violations: int
    first: list[Violation]
    missing: list[str]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """In a word or three."""
        if self.missing:
            return "not looked at"
        return "violated" if self.violations else "holds"


def judge(evidence: Evidence, rules: tuple[Rule, ...] = RULES) -> Iterator[Finding]:
    """One finding a rule, in order."""
    for rule in rules:
        began = time.perf_counter()
        missing = [need for need in rule.NEEDS if not evidence.has(need)]
        looked, count, first = (0, 0, list[Violation]()) if missing else _run(rule, evidence)
        took = time.perf_counter() - began
        yield Finding(rule.NAME, claim(rule), looked, rule.LOOKS_AT, count, first, missing, took)


def _run(rule: Rule, evidence: Evidence) -> tuple[int, int, list[Violation]]:
    findings, first, count = rule.check(evidence), list[Violation](), 0
    while True:
        try:
            violation = next(findings)
        except StopIteration as end:
            looked: int = end.value
            return looked, count, first
        count += 1
        if len(first) < KEPT_MAX:
            first.append(violation)
