"""Gateways with a bug each, for `python -m tests.chaos.edge --planted NAME`: the rule named here has to say so.

The last of them have none: what they do differently must be right as well.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from gateway.admission.batcher import InFlight
from gateway.admission.decide import Gate, Known
from gateway.admission.sale_gate import SaleGate, StaleAppends
from gateway.admission.send import Send
from gateway.auth.ids import IdentityKey
from gateway.auth.ids import Subject as Person
from gateway.read_side.freshness import Freshness
from gateway.read_side.lookup import Lookup
from gateway.read_side.postgres import Snapshot, Store
from gateway.read_side.purchase_memory import PurchaseMemory, RememberedIds
from gateway.read_side.purchase_state import Rejected, Reserved
from ratelimit.bucket import Buckets, Cell, Outcome
from ratelimit.limiter import Limiter, Subject, Verdict
from stampede_schemas.identifiers import ProductId, PurchaseId
from stampede_schemas.requests import PurchaseRequested
from tests.planted.builds.planting import exchange

_fresh, _known, _says = Freshness.fresh, InFlight.known, SaleGate.says
_check, _purchase_id, _snapshot = Limiter.check, IdentityKey.purchase_id, Store.snapshot
_decided, _memory = PurchaseMemory.decided, PurchaseMemory.__init__
_said: dict[ProductId, float] = {}
_degraded = [False]
SOME_S = 4.0
EARLIER_S = 1.0
FEW = 200

FROZEN = "workers frozen", "gateways behind"
DEATHS = "gateway killed", "gateway restarted"
WIRES = "gateway-redis stalled", "redis 60 ms away"


class Planted(NamedTuple):
    """What is done to the shipped code, the rule (a verdict's first words) that has to notice, and what strikes then.

    No rule: none may say anything.
    """

    rule: str
    faults: tuple[str, ...]
    plant: Callable[[], None]


def _swap(owner: type, **parts: Any) -> Callable[[], None]:
    return lambda: exchange(owner, **parts)


def _sees(before: Known, after: Known) -> Callable[[InFlight, PurchaseRequested, Send | None], Known]:
    """One thing that is known is taken for another."""

    def known(self: InFlight, request: PurchaseRequested, own: Send | None = None) -> Known:
        found = _known(self, request, own)
        return after if found == before else found

    return known


async def _always_fresh(_self: Freshness, _partition: int, _moment: float, _within_s: float) -> bool:
    return True


async def _fresh_a_while_ago(self: Freshness, partition: int, moment: float, within_s: float) -> bool:
    return await _fresh(self, partition, moment - EARLIER_S, within_s)


def _takes_all(_self: StaleAppends, _partition: int, _now_s: float) -> bool:
    return True


def _says_it_for_a_while(self: SaleGate, product_id: ProductId) -> Gate:
    """What is sold out stays so for some seconds more."""
    found = _says(self, product_id)
    if found == "sold out":
        _said[product_id] = time.monotonic() + SOME_S
    return "sold out" if time.monotonic() < _said.get(product_id, 0.0) else found


async def _notes_degraded(self: Limiter, batch: Sequence[Subject]) -> list[Verdict]:
    verdicts = await _check(self, batch)
    _degraded[0] = any(verdict.degraded for verdict in verdicts)
    return verdicts


def _open_while_degraded(self: SaleGate, product_id: ProductId) -> Gate:
    return "open" if _degraded[0] else _says(self, product_id)


def _gate_by_redis() -> None:
    exchange(Limiter, check=_notes_degraded)
    exchange(SaleGate, says=_open_while_degraded)


def _remembers_few(self: PurchaseMemory, _purchases_max: int = 0, ids: RememberedIds | None = None) -> None:
    _memory(self, FEW, ids)


def _knows_no_id(_self: RememberedIds, _partition: int, _purchase_id: PurchaseId) -> bool:
    return False


def _forgets() -> None:
    exchange(PurchaseMemory, __init__=_remembers_few)
    exchange(RememberedIds, may_know=_knows_no_id)


async def _reads_no_ids(self: Store, _ids: RememberedIds) -> Snapshot:
    return await _snapshot(self, RememberedIds())


def _counts_versions(self: PurchaseMemory, told: Reserved | Rejected) -> None:
    known = self.get(told.purchase_id)
    _decided(self, replace(told, version=(known.version if known else 0) + 1))


async def _denies(_self: Lookup, _purchase_id: PurchaseId, _place: object) -> None:
    return None


def _by_gateway(
    self: IdentityKey, subject: Person, method: str, route: str, product_id: ProductId, key: str
) -> PurchaseId:
    return _purchase_id(self, subject, method, f"{route}{id(self)}", product_id, key)


async def _lets_all_in(self: Limiter, batch: Sequence[Subject]) -> list[Verdict]:
    """Redis is asked, and its limits are not kept."""
    return [verdict._replace(allowed=True) for verdict in await _check(self, batch)]


def _open_without_redis(_self: Buckets, requests: Sequence[Sequence[Cell]], _now_us: int) -> list[Outcome]:
    return [Outcome(True, None, 0, 0) for _ in requests]


def _shut_without_redis(_self: Buckets, requests: Sequence[Sequence[Cell]], _now_us: int) -> list[Outcome]:
    return [Outcome(False, cells[0].policy, 0, 1_000_000) for cells in requests]


PLANTED: dict[str, Planted] = {
    "any view is fresh": Planted("S8 the gate says what is", FROZEN, _swap(Freshness, fresh=_always_fresh)),
    "the end was asked for before the arrival": Planted(
        "S8 the gate says what is", FROZEN, _swap(Freshness, fresh=_fresh_a_while_ago)
    ),
    "sold-out is told for some seconds more": Planted(
        "S8 the gate says what is", DEATHS, _swap(SaleGate, says=_says_it_for_a_while)
    ),
    "a stale view lets all through": Planted("S8 the log is spared", FROZEN, _swap(StaleAppends, take=_takes_all)),
    "the gate opens while Redis is away": Planted("the gate opens", ("gateway-redis stalled", *DEATHS), _gate_by_redis),
    "a repeat does not join, and is logged again": Planted(
        "S8 logged as told", DEATHS, _swap(InFlight, known=_sees("on its way", "nothing"))
    ),
    "a repeat of what is not decided is in flight": Planted(
        "S9 in flight", FROZEN, _swap(InFlight, known=_sees("accepted", "other undecided"))
    ),
    "422 before a decision": Planted(
        "S9 422 is decided", FROZEN, _swap(InFlight, known=_sees("other undecided", "other body"))
    ),
    "any body is the first one": Planted(
        "S9 one body", DEATHS, _swap(InFlight, known=_sees("other body", "same body"))
    ),
    "the limits come before what is known": Planted(
        "S9 repeats are free", DEATHS, _swap(InFlight, known=_sees("same body", "unsettled"))
    ),
    "what is forgotten was never there": Planted("S8 logged is not refused", WIRES, _forgets),
    "the ids are not read at the start": Planted(
        "S8 logged is not refused", DEATHS, _swap(Store, snapshot=_reads_no_ids)
    ),
    "what a gateway has not seen is denied": Planted(
        "S8 nothing is denied", FROZEN, _swap(Lookup, _not_in_memory=_denies)
    ),
    "versions are counted in memory": Planted(
        "S10 one version everywhere", DEATHS, _swap(PurchaseMemory, decided=_counts_versions)
    ),
    "a purchase for each gateway": Planted("S9 first answer", DEATHS, _swap(IdentityKey, purchase_id=_by_gateway)),
    "the limits of Redis are not kept": Planted(
        "S11 nobody above the limits", WIRES, _swap(Limiter, check=_lets_all_in)
    ),
    "open while Redis is away": Planted(
        "S11 nobody above the limits", WIRES, _swap(Buckets, check=_open_without_redis)
    ),
    "shut while Redis is away": Planted(
        "S11 nobody polite is limited", WIRES, _swap(Buckets, check=_shut_without_redis)
    ),
    "no bug: a memory of two hundred purchases": Planted("", DEATHS, _swap(PurchaseMemory, __init__=_remembers_few)),
}
BUGS = {name: planted.plant for name, planted in PLANTED.items()}
