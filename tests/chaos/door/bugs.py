"""Gateways with a bug each, for `python -m tests.chaos.door --planted NAME`: the rule named here has to say so.

One of them has none: it remembers no purchase itself, so that every repeat is a matter of its claim.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway import appender
from gateway.admission import IdentityKey
from gateway.admission import Subject as Person
from gateway.appender import Answer, Appender, Replayed, in_flight
from gateway.claims import Claims, Ruling
from gateway.lookup import Lookup, SaleDoor
from gateway.problems import Problem
from gateway.projection import Purchase
from gateway.trust import Trust
from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.claim import Claim, Known
from ratelimit.limiter import Subject, Verdict
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.requests import AnyRequest, PurchaseRequested
from tests.planted.builds.planting import exchange

_append, _check, _purchase_id = Appender.append, Claims.check, IdentityKey.purchase_id

_refusals, _answer = SaleDoor.refusals, appender._answer
_said: dict[str, tuple[Problem | None, float]] = {}
STALE_S = 4.0


class Planted(NamedTuple):
    """What is done to the shipped code, and the rule (a verdict's first words) that has to notice; empty: none may."""

    rule: str
    plant: Callable[[], None]


async def _refuses_first(self: Appender, request: AnyRequest, subject: Subject | None) -> Answer:
    """The door is asked before the claim."""
    if isinstance(request, PurchaseRequested):
        refusal: Problem | None = self._door.refusals([request])[0]
        if refusal is not None:
            return refusal
    return await _append(self, request, subject)


async def _claims_nothing(self: Claims, batch: Sequence[Subject], claims: Sequence[Claim]) -> Ruling:
    """Limits are asked, claims are not."""
    judged = await self._ask(batch)
    return Ruling(judged.verdicts, self._trust.vouches(judged.stamp))


async def _lets_all_in(self: Claims, batch: Sequence[Subject], claims: Sequence[Claim]) -> Ruling:
    """Redis is asked, and its limits are not kept."""
    ruling = await _check(self, batch, claims)
    return ruling._replace(verdicts=[verdict._replace(allowed=True) for verdict in ruling.verdicts])


def _open_without_redis(_self: Buckets, requests: Sequence[Sequence[Cell]], _now_us: int) -> list[Outcome]:
    return [Outcome(True, None, 0, 0) for _ in requests]


def _shut_without_redis(_self: Buckets, requests: Sequence[Sequence[Cell]], _now_us: int) -> list[Outcome]:
    return [Outcome(False, cells[0].policy, 0, 1_000_000) for cells in requests]


async def _forgets_the_ticks(self: Claims, batch: Sequence[Subject], claims: Sequence[Claim]) -> Ruling:
    """What became of a claim is never told."""
    self._untold.clear()
    return await _check(self, batch, claims)


def _knows_nothing(_self: Lookup, _purchase_id: str) -> str | None:
    return None


def _remembers_sold_out(self: SaleDoor, requests: list[PurchaseRequested]) -> list[Problem | None]:
    """Once said, it is said for some seconds more."""
    found = _refusals(self, requests)
    for at, (request, refusal) in enumerate(zip(requests, found, strict=True)):
        said, until = _said.get(request.product_id, (None, 0.0))
        if refusal is not None:
            _said[request.product_id] = refusal, time.monotonic() + STALE_S
        elif time.monotonic() < until:
            found[at] = said
    return found


async def _denies(_self: Lookup, _purchase_id: str) -> Purchase | None:
    return None


def _waits_for_ever(verdict: Verdict, *, vouched: bool) -> Replayed | Problem | None:
    return in_flight() if verdict.known is Known.AGAIN else _answer(verdict, vouched=vouched)


def _never_again() -> None:
    exchange(appender, _answer=_waits_for_ever)
    exchange(Lookup, fingerprint=_knows_nothing)  # or it would know better


def _by_gateway(self: IdentityKey, subject: Person, method: str, route: str, key: str) -> PurchaseId:
    return _purchase_id(self, subject, method, f"{route}{id(self)}", key)


def _believes_all(_self: Trust, stamp: str) -> bool:
    return bool(stamp)


PLANTED: dict[str, Planted] = {
    "sold-out before the claim is looked for": Planted(
        "S8 doubt refuses nobody", lambda: exchange(Appender, append=_refuses_first)
    ),
    "nothing is claimed": Planted("S9 one body", lambda: exchange(Claims, check=_claims_nothing)),
    "outcomes are not told to Redis": Planted(
        "S9 claims kept", lambda: exchange(Claims, check=_forgets_the_ticks, settle=lambda _self, _settled: None)
    ),
    "any Redis is believed": Planted(
        "S8 no forgetful Redis is believed", lambda: exchange(Trust, vouches=_believes_all)
    ),
    "the limits of Redis are not kept": Planted(
        "S11 nobody above the limits", lambda: exchange(Claims, check=_lets_all_in)
    ),
    "open while Redis is away": Planted(
        "S11 nobody above the limits", lambda: exchange(Buckets, check=_open_without_redis)
    ),
    "shut while Redis is away": Planted(
        "S11 nobody polite is limited", lambda: exchange(Buckets, check=_shut_without_redis)
    ),
    "sold-out is told for some seconds more": Planted(
        "S8 sold-out is true", lambda: exchange(SaleDoor, refusals=_remembers_sold_out)
    ),
    "what a gateway has not seen is denied": Planted(
        "S8 nothing is denied", lambda: exchange(Lookup, _never_seen=_denies)
    ),
    "a claim in flight is waited for without end": Planted("S9 twins", _never_again),
    "a purchase for each gateway": Planted("S9 first answer", lambda: exchange(IdentityKey, purchase_id=_by_gateway)),
    "no bug: repeats are known by their claims alone": Planted(
        "", lambda: exchange(Lookup, fingerprint=_knows_nothing)
    ),
}
BUGS = {name: planted.plant for name, planted in PLANTED.items()}
