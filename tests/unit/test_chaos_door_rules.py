"""Each rule of the door names what it is there for, and nothing else: accounts made by hand, broken one at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.rules.s11_limiter import Span
from tests.chaos.door import account as accounts
from tests.chaos.door import coverage
from tests.chaos.door.account import Account, Call, Evicted, Look, Memory, Send
from tests.chaos.door.plan import PER_ROUND, rounds
from tests.chaos.door.rules import RULES
from tests.chaos.faults import KINDS_AT_THE_DOOR

LIMITS = "user:token_bucket:2/s,address:token_bucket:10/s"
ENDS_MS = 60_000.0
GATEWAYS = ("gateway-0", "gateway-1")
STAMP = "a b 0"


def send(
    key: str, at: float, status: int = 202, *, gateway: int = 0, body: str = "one", kind: str = "", **more: Any
) -> Send:
    """A send of ann's, answered within 5 ms; an accepted one names the purchase of its key."""
    purchase = f"p-{key}"
    raw = {"type": f"/problems/{kind}"} if kind else {"purchase_id": purchase} if status in (201, 202) else {}
    made = Send(
        f"ann/{key}", "ann", "10.0.0.1", GATEWAYS[gateway], body, "tea", at, at + 5, status,
        json.dumps(raw).encode(), purchase if status in (201, 202) else "",
    )  # fmt: skip
    return made._replace(**more)


def calls(*changes: tuple[float, str, bool], pid: int = 1) -> list[Call]:
    """A witness' lines: at these instants something changed, and every second it was told."""
    found = []
    for at in range(0, int(ENDS_MS), 1_000):
        stamp, vouched = next(((s, v) for since, s, v in reversed(changes) if since <= at), (STAMP, True))
        found.append(Call(pid, at, at + 1, stamp, vouched))
    return found


def sound() -> Account:
    """Bought, asked for again everywhere, turned away when nothing was left, held back when it was too often."""
    sends = [
        send("a", 1_000),
        send("a", 2_000, gateway=1, replayed=True),
        send("a", 2_100, 422, gateway=1, body="two", kind="idempotency-key-reused"),
        send("b", 10_000, 409, kind="sold-out"),
        send("c", 10_010, 409, kind="sold-out"),
        send("d", 10_020, 429, kind="rate-limited"),
        send("a", 10_100, replayed=True),
        send("e", 20_000),
        send("e", 20_001, 409, gateway=1, kind="in-flight"),
        send("f", 30_000, 0),
        send("f", 31_000),
    ]
    return Account(
        LIMITS,
        2,
        sends,
        [Look("p-a", "gateway-1", 5_000, 5_010, 200)],
        {gateway: calls() for gateway in GATEWAYS},
        Memory(),
        {f"p-{key}": "a 1 owner print bann" for key in "aef"},
        {"tea": [(0.0, 5), (9_000.0, 0), (19_000.0, 5)]},
        ENDS_MS - 1_000,
    )


def violated(account: Account) -> set[str]:
    """The rules that name something."""
    return {rule.name for rule in RULES if list(rule.check(account))}


def add(*sends: Send) -> Callable[[Account], None]:
    """They happened as well."""
    return lambda account: account.sends.extend(sends)


def told(gateway: int, *changes: tuple[float, str, bool]) -> Callable[[Account], None]:
    """What a gateway went by."""
    return lambda account: account.calls.update({GATEWAYS[gateway]: calls(*changes)})


def both(*steps: Callable[[Account], None]) -> Callable[[Account], None]:
    """One after the other."""

    def all_of(account: Account) -> None:
        for step in steps:
            step(account)

    return all_of


def lost(from_ms: float, to_ms: float) -> Callable[[Account], None]:
    """Redis forgot everything in between."""
    return lambda account: account.memory.lost.append(Span(from_ms, to_ms))


def denied(at: float) -> Callable[[Account], None]:
    """Somebody was told that there is no such purchase."""
    return lambda account: account.looks.append(Look("p-a", "gateway-0", at, at + 5, 404))


def claimed(*keys: str) -> Callable[[Account], None]:
    """Redis holds their claims."""
    return lambda account: account.claims.update({f"p-{key}": "a 1 owner print bann" for key in keys})


LOCAL = (8_000.0, "", False), (40_000.0, STAMP, True)
DOUBT = (8_000.0, STAMP, False), (40_000.0, STAMP, True)
WRONG: dict[str, tuple[Callable[[Account], None], set[str]]] = {
    "sold out, although bought before": (
        add(send("a", 15_000, 409, gateway=1, kind="sold-out")),
        {"S9 first answer"},
    ),
    "another purchase for a repeat": (
        add(send("a", 3_000, gateway=1, located="p-z", raw=b'{"purchase_id": "p-z"}')),
        {"S9 first answer"},
    ),
    "other bytes for a repeat": (
        add(send("a", 3_000, raw=b'{"purchase_id": "p-a", "x": 1}')),
        {"S9 first answer"},
    ),
    "a repeat is limited": (
        add(send("a", 3_000, 429, gateway=1, kind="rate-limited")),
        {"S9 first answer", "S11 nobody polite is limited"},
    ),
    "a repeat is misused": (add(send("a", 3_000, 422, gateway=1, kind="idempotency-key-reused")), {"S9 first answer"}),
    "what was bought is misused, where another body was accepted too": (
        both(
            told(1, *DOUBT),
            add(send("a", 8_500, gateway=1, body="two"), send("a", 8_900, 422, kind="idempotency-key-reused")),
            lambda account: account.bought.update({"p-a": "one"}),
        ),
        {"S9 first answer"},
    ),
    "another body, later": (add(send("a", 3_000, gateway=1, body="two")), {"S9 one body"}),
    "another body, at once": (add(send("e", 20_002, gateway=1, body="two")), {"S9 one body"}),
    "in flight, and nothing was": (add(send("g", 40_000, 409, kind="in-flight")), {"S9 twins"}),
    "in flight for ever": (add(send("a", 25_000, 409, kind="in-flight")), {"S9 twins"}),
    "no claim": (lambda account: account.claims.update({"p-a": ""}), {"S9 claims kept"}),
    "a claim that was never settled": (
        lambda account: account.claims.update({"p-a": "i 1 owner print bann"}),
        {"S9 claims kept"},
    ),
    "sold out, with units there": (add(send("g", 25_000, 409, kind="sold-out")), {"S8 sold-out is true"}),
    "sold out by a gateway in doubt": (told(0, *DOUBT), {"S8 doubt refuses nobody"}),
    "denied": (denied(6_000), {"S8 nothing is denied"}),
    "a Redis that forgot is believed": (lost(39_000, 39_020), {"S8 no forgetful Redis is believed"}),
    "one that evicted, too": (
        lambda account: account.memory.evicted.append(Evicted(39_000, 39_020, "{rl}:c:p-q")),
        {"S8 no forgetful Redis is believed"},
    ),
    "too many": (
        add(
            *(send(f"x{n}", 45_000 + n, 409, kind="sold-out") for n in range(3)),
        ),
        {"S11 nobody above the limits", "S8 sold-out is true"},
    ),
    "too many for one gateway alone": (
        both(told(0, (44_000.0, "", False)), claimed("x0", "x1"), add(send("x0", 45_100), send("x1", 45_101))),
        {"S11 nobody above the limits"},
    ),
    "polite, and limited": (add(send("g", 50_000, 429, kind="rate-limited")), {"S11 nobody polite is limited"}),
}
FORGIVEN: dict[str, Callable[[Account], None]] = {
    "what was not bought is misused, although it was accepted first": both(
        told(1, *DOUBT),
        add(send("a", 8_500, gateway=1, body="two"), send("a", 8_900, 422, kind="idempotency-key-reused")),
        lambda account: account.bought.update({"p-a": "two"}),
        lambda account: account.sends.__delitem__(6),
    ),
    "a repeat is limited by a gateway without Redis": both(
        told(1, *LOCAL),
        claimed("h"),
        add(send("h", 8_500, gateway=1), send("a", 8_600, 429, gateway=1, kind="rate-limited")),
    ),
    "another body, where nobody could tell": both(
        told(1, (19_000.0, STAMP, False), (40_000.0, STAMP, True)), add(send("e", 20_002, gateway=1, body="two"))
    ),
    "no claim in a Redis that forgot, and is not believed": both(
        lost(2_500, 2_520),
        told(0, (3_000.0, "c b 0", False), (16_000.0, STAMP, True)),
        told(1, (3_000.0, "c b 0", False), (16_000.0, STAMP, True)),
        lambda account: account.sends.__delitem__(slice(3, 7)),
        lambda account: account.claims.update({"p-a": ""}),
    ),
    "as many again after a loss": both(
        lost(45_050, 45_060),
        told(0, (46_000.0, "c b 0", False)),
        told(1, (46_000.0, "c b 0", False)),
        claimed("x0", "x1", "x2", "x3"),
        add(send("x0", 45_000), send("x1", 45_010), send("x2", 45_100), send("x3", 45_110)),
    ),
}


def test_a_sound_account_breaks_no_rule() -> None:
    """Else all that follows would mean nothing."""
    assert violated(sound()) == set()


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_its_rule(name: str) -> None:
    """And by no other, unless it is said here."""
    account, (breaks, rules) = sound(), WRONG[name]
    breaks(account)
    assert violated(account) == rules


@pytest.mark.parametrize("name", FORGIVEN)
def test_what_a_lost_redis_permits_is_no_violation(name: str) -> None:
    """Exactly that."""
    account = sound()
    FORGIVEN[name](account)
    assert violated(account) == set()


def test_an_account_is_judged_alike_from_its_file(tmp_path: Path) -> None:
    """What a failed round leaves can be looked at again."""
    account = sound()
    WRONG["polite, and limited"][0](account)
    accounts.write(tmp_path / "door.json", account)
    assert violated(accounts.read(tmp_path / "door.json")) == {"S11 nobody polite is limited"}


def test_a_run_in_which_too_little_happened_is_worth_nothing() -> None:
    """Every count that is too small is named, and so is a fault that struck nothing; enough of all is enough."""
    counted = coverage.counts(sound())
    told = list(coverage.vacuous(counted, LIMITS, 1.0, ["redis evicting"]))
    assert len(told) > len(coverage.NEEDED) / 2
    assert any("redis evicting" in sentence for sentence in told)
    enough = {needed.what: int(needed.least) + 1 for needed in coverage.NEEDED}
    felt = {"callers at their user token bucket": 1, "callers at their address token bucket": 1}
    assert list(coverage.vacuous(enough | felt, LIMITS, 1.0, [])) == []
    assert list(coverage.vacuous(enough, LIMITS, 1.0, [])) != []


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_strikes_the_door_within_three_rounds(seed: int) -> None:
    """And the same seed gives the same plan."""
    found = [planned for planned, _ in zip(rounds(seed, KINDS_AT_THE_DOOR), range(3), strict=False)]
    assert found == [one for one, _ in zip(rounds(seed, KINDS_AT_THE_DOOR), range(3), strict=False)]
    assert {strike.fault for one in found for strike in one.strikes} == set(KINDS_AT_THE_DOOR)
    assert all(len(one.strikes) == PER_ROUND for one in found)
