"""The states of one purchase: a union of states, and how two of them become one. Pure.

Acknowledgements, decisions, events and rows arrive in any order. The known state never falls in (version, status):
a rejection is version 1, a reservation version 2, order events begin at 3, and none of them depends on who tells.
"""

from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from stampede_schemas.decisions import Rejected as RejectedDecision
from stampede_schemas.decisions import Reserved as ReservedDecision
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import PurchaseRequested

REJECTED_VERSION = 1
RESERVED_VERSION = 2
PurchaseStatus = Literal["pending", "reserved", "confirmed", "rejected", "released"]
_RANK: dict[str, int] = {"pending": 0, "rejected": 1, "reserved": 1, "confirmed": 2, "released": 3}


class _Purchase(Struct, frozen=True, gc=False):
    """The part that all states with a body share. `position` is that of the request which the state is about."""

    purchase_id: PurchaseId
    buyer_id: BuyerId
    product_id: ProductId
    quantity: int
    fingerprint: str  # empty where an order event told of it: events carry none
    position: Position
    trace_id: str | None


class Accepted(_Purchase, frozen=True, gc=False):
    """This gateway holds the log's acknowledgement, since `since_s` of its own clock; nothing is decided."""

    since_s: float
    status: ClassVar[PurchaseStatus] = "pending"
    version: ClassVar[int] = 0


class Answered(Struct, frozen=True, gc=False):
    """The log ignored a request of this purchase because of what came before this gateway's memory: the row tells.

    `position` is that of the first answer; of the ignored request itself where the product is `retired`, so that the
    fold had forgotten whether there was an answer. `mine` is what this gateway had accepted, if it had.
    """

    purchase_id: PurchaseId
    position: Position
    retired: bool = False
    mine: Accepted | None = None
    status: ClassVar[PurchaseStatus] = "pending"
    version: ClassVar[int] = 0
    fingerprint: ClassVar[str] = ""


class Rejected(_Purchase, frozen=True, gc=False):
    """The log said no; it holds for as long as the fold remembers it."""

    reason: str | None
    changed_at_ms: Millis | None
    version: int = REJECTED_VERSION
    status: ClassVar[PurchaseStatus] = "rejected"


class Reserved(_Purchase, frozen=True, gc=False):
    """Stock is held. `hold_until_ms` is Postgres' and comes with the row. Money in minor units."""

    reservation_no: int | None
    unit_price_minor: int | None
    currency: str | None
    changed_at_ms: Millis | None
    hold_until_ms: Millis | None = None
    version: int = RESERVED_VERSION
    cancel_asked: bool = False
    status: ClassVar[PurchaseStatus] = "reserved"


class Ordered(_Purchase, frozen=True, gc=False):
    """Confirmed or released, as the order-writer says. Money in minor units."""

    status: Literal["confirmed", "released"]
    version: int
    reason: str | None
    reservation_no: int | None
    unit_price_minor: int | None
    currency: str | None
    refund: str
    changed_at_ms: Millis | None
    cancel_asked: bool = False


Purchase = Accepted | Answered | Rejected | Reserved | Ordered


def buyer_of(known: Purchase) -> BuyerId | None:
    """The buyer's pseudonym; None while only the row could tell."""
    if isinstance(known, Answered):
        return known.mine.buyer_id if known.mine else None
    return known.buyer_id


def may_change(known: Purchase) -> bool:
    """Whether there is something left to wait for."""
    match known:
        case Accepted() | Answered() | Reserved():
            return True
        case Rejected():
            return False
        case Ordered():
            return known.refund == "due" or (known.cancel_asked and known.status == "confirmed")
        case _:
            assert_never(known)


def newest(known: Purchase | None, told: Purchase) -> Purchase:
    """The known state after `told`, whichever of the two came first. Equal states complete each other."""
    if known is None:
        return told
    high, low = (told, known) if _rank(told) > _rank(known) else (known, told)
    if isinstance(high, Answered) or isinstance(low, Answered) or isinstance(high, Accepted):
        return high
    if high.position == low.position:
        if not high.fingerprint and low.fingerprint:
            high = replace(high, fingerprint=low.fingerprint)
        if high.trace_id is None and low.trace_id is not None:
            high = replace(high, trace_id=low.trace_id)
        if isinstance(high, Reserved) and isinstance(low, Reserved) and high.hold_until_ms is None:
            high = replace(high, hold_until_ms=low.hold_until_ms)
    if isinstance(high, Ordered) and isinstance(low, Reserved | Ordered) and low.cancel_asked:
        high = replace(high, cancel_asked=True)
    return high


def _rank(known: Purchase) -> tuple[int, int, bool]:
    return known.version, _RANK[known.status], isinstance(known, Answered)


def accepted(request: PurchaseRequested, position: Position, now_s: float) -> Accepted:
    """The log acknowledged this request at this gateway."""
    return Accepted(
        request.purchase_id,
        request.buyer_id,
        request.product_id,
        request.quantity,
        request.fingerprint,
        position,
        trace_id_in(request.traceparent),
        now_s,
    )


def decided(
    decision: ReservedDecision | RejectedDecision, position: Position, at_ms: Millis | None
) -> Reserved | Rejected:
    """The log decided the request at `position`, which was appended at `at_ms`."""
    body = (
        decision.purchase_id,
        decision.buyer_id,
        decision.product_id,
        decision.quantity,
        decision.fingerprint,
        position,
        trace_id_in(decision.traceparent),
    )
    if isinstance(decision, RejectedDecision):
        return Rejected(*body, decision.reason, at_ms)
    return Reserved(*body, decision.reservation_no, decision.unit_price_minor, decision.currency, at_ms)


def ordered(event: AnyOrderEvent) -> Ordered:
    """The order-writer published this version of the order."""
    assert event.status in ("confirmed", "released")
    return Ordered(
        event.purchase_id,
        event.buyer_id,
        event.product_id,
        event.quantity,
        "",
        event.reservation,
        trace_id_in(event.traceparent),
        event.status,
        event.version,
        event.reason,
        event.reservation_no,
        event.unit_price_minor,
        event.currency,
        event.refund,
        event.occurred_at_ms,
    )


def trace_id_in(traceparent: str | None) -> str | None:
    """The trace id of a W3C traceparent."""
    return traceparent[3:35] if traceparent else None
