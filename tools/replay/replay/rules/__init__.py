"""The invariants, one a file. A rule is a module: its docstring says what it claims, `check` looks for the opposite.

To add one: write the module and name it here. `docs/INVARIANTS.md` lists them; a test compares.
"""

from typing import Protocol

from replay.evidence import Evidence, Findings
from replay.rules import (
    s01_conservation,
    s02_no_oversell,
    s03_one_decision,
    s04_right_decision,
    s05_every_hold_ends,
    s06_released_once,
    s07_no_invented_orders,
    s08_accepted_is_logged,
    s09_one_key_one_outcome,
    s10_only_forward,
    s11_limiter,
    s12_same_tables,
    s13_pure_replay,
    s14_one_history,
    s15_buyer_limit,
    s16_nothing_skipped,
    s17_fair_order,
    s19_no_canaries,
    s21_money,
    s22_cancelled_by_command,
)


class Rule(Protocol):
    """What such a module holds. `NEEDS` are fields of `Evidence` that may be missing; `LOOKS_AT` is what it counts."""

    NAME: str
    NEEDS: tuple[str, ...]
    LOOKS_AT: str

    def check(self, evidence: Evidence) -> Findings:
        """Yield each violation, the first of a partition first; return how many things were looked at."""


RULES: tuple[Rule, ...] = (
    s01_conservation,
    s02_no_oversell,
    s03_one_decision,
    s04_right_decision,
    s05_every_hold_ends,
    s06_released_once,
    s07_no_invented_orders,
    s08_accepted_is_logged,
    s09_one_key_one_outcome,
    s10_only_forward,
    s11_limiter,
    s12_same_tables,
    s13_pure_replay,
    s14_one_history,
    s15_buyer_limit,
    s16_nothing_skipped,
    s17_fair_order,
    s19_no_canaries,
    s21_money,
    s22_cancelled_by_command,
)


def claim(rule: Rule) -> str:
    """What the rule says is true, in one sentence."""
    return (rule.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
