"""Each rule of the edge names what it is there for, and nothing else: accounts made by hand, broken one at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.rules.s11_limiter import Span
from tests.chaos.edge import account as accounts
from tests.chaos.edge import coverage, refusals
from tests.chaos.edge.account import Account, Call, Fate, Hurt, Look, Send, Stocked, readable
from tests.chaos.edge.plan import PER_ROUND, rounds
from tests.chaos.edge.rules import RULES
from tests.chaos.faults import KINDS_AT_THE_EDGE

LIMITS = "user:token_bucket:2/s,address:token_bucket:10/s"
ENDS_MS = 60_000.0
GATEWAYS = ("gateway-0", "gateway-1")
Breaks = Callable[[Account], None]


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


def calls(*local: Span, pid: int, restarts_ms: float = 0.0) -> list[Call]:
    """A witness' lines, one each second: it was without Redis within these spans, and another process from then on."""
    found = []
    for at in range(0, int(ENDS_MS), 1_000):
        alone = any(span.from_ms <= at < span.to_ms for span in local)
        found.append(Call(pid + (0 < restarts_ms <= at), at, at + 1, alone))
    return found


def logged(*at: float, decided_ms: float | None = None, body: str = "one", **more: Any) -> Fate:
    """Appended at these instants, and decided 10 ms after the first of them."""
    return Fate(
        list(at), at[0] + 10 if decided_ms is None else decided_ms, body, "reserved", "", "confirmed", 3
    )._replace(**more)


def left(at: float, available: int, decided_ms: float | None = None) -> Stocked:
    """So much was available behind a request that was appended then, and decided 10 ms later."""
    return Stocked(at, readable(at, at + 10 if decided_ms is None else decided_ms), available)


def sound() -> Account:
    """Bought, asked for again everywhere, turned away when nothing was left, held back when it was too often."""
    sends = [
        send("a", 1_000),
        send("a", 3_000, gateway=1, replayed=True),
        send("a", 3_100, 422, gateway=1, body="two", kind="idempotency-key-reused"),
        send("b", 10_000, 409, kind="sold-out"),
        send("c", 10_010, 409, kind="sold-out"),
        send("d", 10_020, 429, kind="rate-limited"),
        send("a", 10_100, replayed=True),
        send("e", 20_000),
        send("e", 20_001, 409, body="two", kind="in-flight"),
        send("f", 30_000, 0),
        send("f", 31_000, gateway=1),
    ]
    looks = [
        ("gateway-0", 1_020, 0, "pending"),
        ("gateway-1", 5_000, 2, "reserved"),
        ("gateway-0", 9_000, 3, "confirmed"),
    ]
    return Account(
        LIMITS,
        2,
        sends,
        [Look("p-a", gateway, at, at + 10, 200, version, state) for gateway, at, version, state in looks],
        {gateway: calls(pid=pid) for gateway, pid in zip(GATEWAYS, (1, 11), strict=True)},
        ids={f"ann/{key}": f"p-{key}" for key in "abcdefghijkx"} | {f"ann/x{n}": f"p-x{n}" for n in range(4)},
        fates={"p-a": logged(1_002), "p-e": logged(20_003), "p-f": logged(30_004, 31_003)},
        stock={"tea": [left(0, 5), left(9_000, 0), left(19_000, 5)], "gone": [left(0, 0)]},
    )


def violated(account: Account) -> set[str]:
    """The rules that name something."""
    return {rule.name for rule in RULES if list(rule.check(account))}


def add(*sends: Send) -> Breaks:
    """They happened as well."""
    return lambda account: account.sends.extend(sends)


def both(*steps: Breaks) -> Breaks:
    """One after the other."""

    def all_of(account: Account) -> None:
        for step in steps:
            step(account)

    return all_of


def alone(gateway: int, from_ms: float, to_ms: float) -> Breaks:
    """A gateway was without Redis."""
    made = calls(Span(from_ms, to_ms), pid=10 * gateway + 1)
    return lambda account: account.calls.update({GATEWAYS[gateway]: made})


def restarted(gateway: int, at: float) -> Breaks:
    """A gateway was another process from then on."""
    made = calls(pid=10 * gateway + 1, restarts_ms=at)
    return lambda account: account.calls.update({GATEWAYS[gateway]: made})


def fated(**fates: Fate) -> Breaks:
    """The log holds these."""
    return lambda account: account.fates.update({f"p-{key}": fate for key, fate in fates.items()})


def shown(version: int, state: str, at: float = 7_000, gateway: int = 1, status: int = 200) -> Breaks:
    """Somebody looked at what was bought first."""
    look = Look("p-a", GATEWAYS[gateway], at, at + 10, status, version, state)
    return lambda account: account.looks.append(look)


def crowd(per_s: int) -> Breaks:
    """Strangers come for what is gone for four seconds, and so many a second are logged."""

    def come(account: Account) -> None:
        for number in range(4 * per_s):
            at, key = 40_000 + number * 1_000 / per_s, f"s{number}"
            account.sends.append(send(key, at, product_id="gone", buyer=key, address=key))
            account.ids[f"ann/{key}"] = f"p-{key}"
            account.fates[f"p-{key}"] = logged(at + 2)

    return come


REUSED = "idempotency-key-reused"
WRONG: dict[str, tuple[Breaks, set[str]]] = {
    "sold out, although bought before": (
        add(send("a", 15_000, 409, gateway=1, kind="sold-out")),
        {"S9 first answer", "S8 logged is not refused"},
    ),
    "sold out, although logged by somebody who died": (
        both(add(send("g", 14_000, 0), send("g", 15_000, 409, gateway=1, kind="sold-out")), fated(g=logged(14_010))),
        {"S8 logged is not refused"},
    ),
    "sold out to another body of what is logged": (
        add(send("a", 15_000, 409, body="two", kind="sold-out")),
        {"S8 logged is not refused"},
    ),
    "an unknown product, after it was bought": (
        add(send("a", 15_000, 404, kind="unknown-product")),
        {"S9 first answer", "S8 logged is not refused", "S8 the gate says what is"},
    ),
    "another purchase for a repeat": (
        add(send("a", 3_000, gateway=1, located="p-z", raw=b'{"purchase_id": "p-z"}', replayed=True)),
        {"S9 first answer"},
    ),
    "other bytes for a repeat": (
        add(send("a", 3_000, raw=b'{"purchase_id": "p-a", "x": 1}', replayed=True)),
        {"S9 first answer"},
    ),
    "a failure for a repeat": (add(send("a", 3_000, 400, kind="malformed")), {"S9 first answer"}),
    "a repeat is limited where it was accepted": (
        add(send("e", 20_100, 429, kind="rate-limited")),
        {"S9 repeats are free"},
    ),
    "a repeat is limited where its decision is known": (
        add(send("a", 4_000, 429, gateway=1, body="two", kind="rate-limited")),
        {"S9 repeats are free", "S11 nobody polite is limited"},
    ),
    "what was bought is misused": (
        add(send("a", 3_000, 422, gateway=1, kind=REUSED)),
        {"S9 first answer", "S9 422 is decided"},
    ),
    "misused before a decision": (
        both(add(send("e", 20_020, 422, body="two", kind=REUSED)), fated(e=logged(20_003, decided_ms=20_200))),
        {"S9 422 is decided"},
    ),
    "misused, and there was nothing": (add(send("g", 25_000, 422, kind=REUSED)), {"S9 422 is decided"}),
    "another body, after a second": (add(send("a", 3_000, gateway=1, body="two", replayed=True)), {"S9 one body"}),
    "another body, where the first was accepted": (
        add(send("e", 20_100, body="two", replayed=True)),
        {"S9 one body"},
    ),
    "another body is told an outcome": (
        add(send("e", 20_100, 201, gateway=1, body="two", replayed=True)),
        {"S9 one body"},
    ),
    "in flight, and nothing was": (add(send("g", 40_000, 409, kind="in-flight")), {"S9 in flight"}),
    "in flight with the same body": (
        both(lambda account: account.sends.__delitem__(8), add(send("e", 20_001, 409, kind="in-flight"))),
        {"S9 in flight"},
    ),
    "in flight at a gateway that has no other body": (
        add(send("e", 20_001, 409, gateway=1, body="two", kind="in-flight")),
        {"S9 in flight"},
    ),
    "in flight for ever": (add(send("a", 25_000, 409, body="two", kind="in-flight")), {"S9 in flight"}),
    "accepted, and not logged": (add(send("g", 25_000)), {"S8 accepted is logged"}),
    "accepted before it was logged": (
        both(add(send("g", 25_000)), fated(g=logged(25_100))),
        {"S8 accepted is logged"},
    ),
    "logged, and never decided": (
        both(add(send("g", 25_000)), fated(g=Fate([25_001]))),
        {"S8 accepted is logged"},
    ),
    "rejected, and it was reserved": (
        add(send("a", 25_000, 409, kind="rejected", located="p-a", replayed=True)),
        {"S8 accepted is logged"},
    ),
    "refused, and logged": (fated(b=logged(10_002)), {"S8 logged as told"}),
    "limited, and logged": (fated(d=logged(10_022)), {"S8 logged as told"}),
    "logged twice by one gateway": (fated(e=logged(20_002, 20_003)), {"S8 logged as told"}),
    "sold out, with units there": (add(send("g", 25_000, 409, kind="sold-out")), {"S8 the gate says what is"}),
    "sold out, a moment after units came": (
        add(send("g", 19_030, 409, kind="sold-out")),
        {"S8 the gate says what is"},
    ),
    "sold out, while workers are frozen and units have come": (
        both(
            lambda account: account.stock["tea"].__setitem__(2, left(19_000, 5, decided_ms=24_000)),
            add(send("g", 19_270, 409, kind="sold-out")),
        ),
        {"S8 the gate says what is"},
    ),
    "not open, and it was": (add(send("g", 25_000, 409, kind="not-open")), {"S8 the gate says what is"}),
    "a crowd is logged that could be refused": (crowd(300), {"S8 the log is spared"}),
    "denied": (shown(0, "", status=404), {"S8 nothing is denied"}),
    "denied at once, by another gateway": (shown(0, "", at=1_006, status=404), {"S8 nothing is denied"}),
    "a version that goes back": (shown(2, "reserved", at=9_020, gateway=0), {"S10 one version everywhere"}),
    "one that stays behind": (shown(2, "reserved", at=10_500), {"S10 one version everywhere"}),
    "one that was told, and is not the row's": (
        fated(a=logged(1_002, version=2, status="reserved")),
        {"S10 one version everywhere"},
    ),
    "a status of another version": (shown(3, "reserved"), {"S10 one version everywhere"}),
    "two fates": (shown(1, "rejected", at=4_990), {"S10 one version everywhere"}),
    "too many": (
        both(
            add(*(send(f"x{n}", 45_000 + n) for n in range(3))),
            fated(**{f"x{n}": logged(45_002) for n in range(3)}),
        ),
        {"S11 nobody above the limits"},
    ),
    "too many for one gateway alone": (
        both(
            alone(0, 44_000, 60_000),
            add(send("x0", 45_100), send("x1", 45_101)),
            fated(x0=logged(45_102), x1=logged(45_103)),
        ),
        {"S11 nobody above the limits"},
    ),
    "polite, and limited": (add(send("g", 50_000, 429, kind="rate-limited")), {"S11 nobody polite is limited"}),
}
PERMITTED: dict[str, Breaks] = {
    "a repeat is limited where nobody can know it yet": both(
        alone(1, 19_000, 40_000),
        fated(h=logged(20_500)),
        add(send("h", 20_502, gateway=1), send("e", 20_510, 429, gateway=1, kind="rate-limited")),
        lambda account: account.ids.update({"ann/h": "p-h"}),
    ),
    "both bodies are accepted at once, and the other one learns it later": add(
        send("e", 20_001, gateway=1, body="two"), send("e", 20_500, 422, gateway=1, body="two", kind=REUSED)
    ),
    "another body is accepted by a gateway that has only the row": both(
        restarted(1, 15_000), add(send("a", 21_000, gateway=1, body="two"))
    ),
    "logged once by each gateway": both(add(send("e", 20_002, gateway=1)), fated(e=logged(20_003, 20_004))),
    "logged once by each process": both(restarted(0, 20_000), add(send("a", 24_000)), fated(a=logged(1_002, 24_001))),
    "logged again after an append that nobody acknowledged": both(
        add(send("e", 20_100, 503, kind="outcome-unknown"), send("e", 20_200)), fated(e=logged(20_003, 20_204))
    ),
    "sold out while the log took the first send": both(
        add(send("g", 14_000, 0), send("g", 14_001, 409, gateway=1, kind="sold-out")), fated(g=logged(14_004))
    ),
    "sold out, when nobody could read of the units yet": add(send("g", 19_015, 409, kind="sold-out")),
    "sold out when the last unit went": add(send("g", 8_998, 409, kind="sold-out")),
    "a repeat that joined what the gate refused spends nothing": add(
        send("c", 10_012, 409, kind="sold-out"), send("b", 10_003, 409, kind="sold-out")
    ),
    "another gateway lags by less than a second": shown(2, "reserved", at=9_600),
    "as many a second as a stale view lets through": crowd(200),
    "as many again after a loss": both(
        lambda account: account.memory.lost.append(Span(45_050, 45_060)),
        add(*(send(f"x{n}", at) for n, at in enumerate((45_000, 45_010, 45_100, 45_110)))),
        fated(**{f"x{n}": logged(at) for n, at in enumerate((45_002, 45_012, 45_102, 45_112))}),
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


def test_every_rule_is_broken_by_something() -> None:
    """None is there for nothing."""
    assert set().union(*(rules for _, rules in WRONG.values())) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", PERMITTED)
def test_what_may_happen_is_no_violation(name: str) -> None:
    """Exactly that."""
    account = sound()
    PERMITTED[name](account)
    assert violated(account) == set()


def test_an_account_is_judged_alike_from_its_file(tmp_path: Path) -> None:
    """What a failed round leaves can be looked at again."""
    account = sound()
    WRONG["polite, and limited"][0](account)
    accounts.write(tmp_path / "edge.json", account)
    assert violated(accounts.read(tmp_path / "edge.json")) == {"S11 nobody polite is limited"}


def test_a_gate_that_opens_when_redis_is_hurt_is_noticed() -> None:
    """By its share of all refusals, where there are enough; while views are hurt nothing is counted."""
    account = sound()
    account.hurt = [Hurt("redis", 30_000, 40_000), Hurt("views", 50_000, 60_000)]
    for at in (9_100, 30_000, 50_000):
        account.sends += [send(f"r{n}", at + n, 409, kind="sold-out") for n in range(300)]
    assert list(refusals.fallen(refusals.counts(account))) == []
    counted = refusals.counts(account)
    assert (refusals.share(counted, refusals.WELL), refusals.share(counted, refusals.HURT)) == (1.0, 1.0)
    account.fates |= {f"p-r{n}": logged(31_000 + n, reason="sold_out") for n in range(100)}
    (said,) = refusals.fallen(refusals.counts(account))
    assert "75.0% of 400 with Redis hurt" in said


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
def test_every_fault_strikes_the_edge_within_three_rounds(seed: int) -> None:
    """And the same seed gives the same plan."""
    found = [planned for planned, _ in zip(rounds(seed, KINDS_AT_THE_EDGE), range(3), strict=False)]
    assert found == [one for one, _ in zip(rounds(seed, KINDS_AT_THE_EDGE), range(3), strict=False)]
    assert {strike.fault for one in found for strike in one.strikes} == set(KINDS_AT_THE_EDGE)
    assert all(len(one.strikes) == PER_ROUND for one in found)
