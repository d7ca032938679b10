"""Which share of "sold out" is said at the gate, and which by the log: Redis being hurt must not change it. Pure.

A gate that opens whenever Redis is slow makes the log larger just when a crowd slows Redis down.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from replay.rules.s11_limiter import Span
from tests.chaos.door.account import Account, Hurt, State, overlap

LEAST = 200  # refusals of each kind, below which nothing is said
FALLS_TO_MIN = 0.9
HEALS_MS = 2_000.0  # after a strike; a limiter looks each second whether Redis is back
WELL, HURT = "with Redis well", "with Redis hurt"
GATE, LOG = "sold-out said at the gate", "sold-out said by the log"


def counts(account: Account) -> Counter[str]:
    """Each refusal by where it was given and how Redis was then; those with views hurt are left out."""
    found: Counter[str] = Counter()
    for send in account.sends:
        if send.kind == "sold-out" and (how := _how(account, send.sent_ms)):
            found[f"{GATE} {how}"] += 1
    for fate in account.fates.values():
        if fate.reason == "sold_out" and (how := _how(account, min(fate.appended_ms))):
            found[f"{LOG} {how}"] += 1
    return found


def share(counted: Mapping[str, int], how: str) -> float:
    """Of all that was said so: what was said at the gate, 0 to 1."""
    gate, log = counted.get(f"{GATE} {how}", 0), counted.get(f"{LOG} {how}", 0)
    return gate / (gate + log) if gate + log else 0.0


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


def _how(account: Account, at_ms: float) -> str:
    """How Redis was at this instant; empty while views were hurt: then nobody can be refused."""
    struck = {hurt.what for hurt in account.hurt if _felt(hurt, at_ms)}
    if "views" in struck:
        return ""
    local = any(state.local for gateway in account.calls for state in _states(account, gateway, at_ms))
    return HURT if "redis" in struck or local else WELL


def _states(account: Account, gateway: str, at_ms: float) -> list[State]:
    return account.during(gateway, at_ms, at_ms)


def _felt(hurt: Hurt, at_ms: float) -> bool:
    return overlap(Span(hurt.from_ms, hurt.to_ms + HEALS_MS), Span(at_ms, at_ms))
