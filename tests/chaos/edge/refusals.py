"""Which share of "sold out" is said at the gate, and which by the log: Redis being hurt must not change it. Pure.

A gate that opens whenever Redis is slow makes the log larger just when a crowd slows Redis down.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median

from replay.rules.s11_limiter import Span
from tests.chaos.edge.account import Account, overlap

LEAST = 200  # refusals of each kind, below which nothing is said
FALLS_TO_MIN = 0.9
HEALS_MS = 2_000.0  # after a strike; a limiter looks each second whether Redis is back
SLOW_MS = 50.0  # half of what the gate waits for a fresh view
WELL, HURT = "with Redis well", "with Redis hurt"
GATE, LOG = "sold-out said at the gate", "sold-out said by the log"


def counts(account: Account) -> Counter[str]:
    """Each refusal by where it was given and how Redis was in that second.

    Seconds in which views were hurt, or decisions slow because the machine was busy, are left out: nobody could be
    refused at the gate then, whatever became of Redis.
    """
    how, found = _Seconds(account), Counter[str]()
    for send in account.sends:
        if send.kind == "sold-out" and (was := how[send.sent_ms]):
            found[f"{GATE} {was}"] += 1
    for fate in account.fates.values():
        if fate.reason == "sold_out" and (was := how[min(fate.appended_ms)]):
            found[f"{LOG} {was}"] += 1
    return found


def share(counted: Mapping[str, int], how: str) -> float:
    """Of all that was said so: what was said at the gate, 0 to 1."""
    return counted.get(f"{GATE} {how}", 0) / (_all(counted, how) or 1)


def sentence(counted: Mapping[str, int]) -> str:
    """For people."""
    told = [f"{share(counted, how):.1%} of {_all(counted, how):,} {how}" for how in (WELL, HURT)]
    return f"said at the gate, of all refusals for want of units: {', '.join(told)}"


def fallen(counted: Mapping[str, int]) -> Iterator[str]:
    """What is wrong, in a sentence."""
    enough = all(_all(counted, how) >= LEAST for how in (WELL, HURT))
    if enough and share(counted, HURT) < FALLS_TO_MIN * share(counted, WELL):
        yield f"the gate opens when Redis is hurt: {sentence(counted)}"


def _all(counted: Mapping[str, int], how: str) -> int:
    return counted.get(f"{GATE} {how}", 0) + counted.get(f"{LOG} {how}", 0)


class _Seconds:
    """How Redis was in the second of an instant; empty: it is left out."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._known: dict[int, str] = {}
        took: dict[int, list[float]] = {}
        for fate in account.fates.values():
            if fate.decided_ms is not None:
                first = min(fate.appended_ms)
                took.setdefault(int(first // 1_000), []).append(fate.decided_ms - first)
        self._slow = {second for second, each in took.items() if median(each) > SLOW_MS}

    def __getitem__(self, at_ms: float) -> str:
        second = int(at_ms // 1_000)
        if second not in self._known:
            self._known[second] = self._how(second)
        return self._known[second]

    def _how(self, second: int) -> str:
        account, within = self._account, Span(second * 1_000, second * 1_000 + 999)
        struck = {h.what for h in account.hurt if overlap(Span(h.from_ms, h.to_ms + HEALS_MS), within)}
        if "views" in struck or second in self._slow:
            return ""
        local = any(state.local for gateway in account.calls for state in account.during(gateway, *within))
        return HURT if "redis" in struck or local else WELL
