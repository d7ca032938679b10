"""The outgoing messages as bytes: releases, order events, dead letters. Everything goes through the outbox.

Pure. Repeats are harmless: a second release is answered `Ignored`, an event is skipped by (purchase_id, version).
"""

from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from order_writer.saga import orders
from order_writer.saga.decision_batch import Record
from stampede_schemas.codec import RECORD_BYTES_MAX, REQUESTS_PER_RECORD_MAX, encode, encode_requests
from stampede_schemas.dead_letters import KEPT_BYTES, letter
from stampede_schemas.identifiers import Millis
from stampede_schemas.order_events import AnyOrderEvent, OrderConfirmed, OrderRefunded, OrderReleased
from stampede_schemas.requests import AnyRequest, ReleaseRequested
from stampede_schemas.topics import DEAD_LETTERS, ORDERS, REQUESTS, partition_of

CE_SOURCE = b"/stampede/order-writer"
# The client places the record by murmur2 of its key, as `partition_of` does, in C: here it was half of an event's cost.
BY_KEY = -1
ORIGINAL = "original."  # begins the names of a dead letter's headers that were the record's own


class Outgoing(msgspec.Struct, frozen=True, array_like=True):
    """One Kafka record on its way. `partition` may be `BY_KEY`."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


encode_outbox = msgspec.msgpack.Encoder().encode
decode_outbox = msgspec.msgpack.Decoder(list[Outgoing]).decode


def releases(effects: list[orders.RequestRelease]) -> list[Outgoing]:
    """The `requests` records that give reservations back, each in the partition where its reservation stands."""
    by_partition: dict[int, list[AnyRequest]] = {}
    for give in effects:
        by_partition.setdefault(give.reservation.partition, []).append(
            ReleaseRequested(
                purchase_id=give.purchase_id,
                product_id=give.product_id,
                reservation=give.reservation,
                reason=give.reason,
                traceparent=give.traceparent,
            )
        )
    return [
        Outgoing(REQUESTS.name, partition, None, value, [])
        for partition, requests in by_partition.items()
        for value in _records(requests)
    ]


def _records(requests: list[AnyRequest]) -> list[bytes]:
    """The requests as records that can be read: a release is never given up, so each is made to fit here."""
    if len(requests) <= REQUESTS_PER_RECORD_MAX:
        value = encode_requests(requests)
        if len(value) <= RECORD_BYTES_MAX or len(requests) == 1:
            return [value]
    middle = len(requests) // 2
    return _records(requests[:middle]) + _records(requests[middle:])


def order_event(state: orders.Confirmed | orders.Released, now_ms: Millis) -> Outgoing:
    """The public event of this version of an order: CloudEvents in binary mode, keyed by purchase."""
    event = _event(state, now_ms)
    purchase_id = event.purchase_id.encode()
    return Outgoing(
        ORDERS.name,
        BY_KEY,
        purchase_id,
        encode(event),
        [
            ("ce_specversion", b"1.0"),
            ("ce_id", b"%b/%d" % (purchase_id, event.version)),
            ("ce_source", CE_SOURCE),
            ("ce_type", _ce_type(type(event), event.v)),
            ("ce_subject", purchase_id),
            ("ce_time", _ce_time(now_ms)),
            ("content-type", b"application/json"),
        ],
    )


@lru_cache(maxsize=16)
def _ce_type(event: type[AnyOrderEvent], version: int) -> bytes:
    return f"stampede.{event.__name__}.v{version}".encode()


@lru_cache(maxsize=16)
def _ce_time(now_ms: Millis) -> bytes:
    return datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").encode()


def dead_letter(
    topic: str, record: Record, reason: str, *, first_seen_ms: Millis, index: int | None = None
) -> Outgoing:
    """A record that can never be acted on: its bytes; where it stood, since when and why it lies here in the headers.

    Of a record that is too large for a letter the beginning; see `stampede_schemas.dead_letters`.

    Args:
        topic, record: the bytes as they came and where they stood; the record's headers are kept under `original.`.
        reason: a stable word.
        first_seen_ms: when it became one.
        index: which of the record's decisions its value is, if it is only a part.
    """
    place = {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "index": index,
        "first_seen_ms": first_seen_ms,
    }
    known = {name: str(value).encode() for name, value in place.items() if value is not None}
    about = [("reason", reason.encode()), *known.items()]
    return Outgoing(
        DEAD_LETTERS.name,
        partition_of(topic),
        "/".join(str(place[name]) for name in ("topic", "partition", "offset", "index") if name in known).encode(),
        *letter(record.value, about, [(f"{ORIGINAL}{name}", value) for name, value in record.headers]),
    )


def cut(message: Outgoing) -> Outgoing:
    """A dead letter that no broker takes as it is: the beginning of its value, and none of the record's own headers."""
    about = [(name, value) for name, value in message.headers if not name.startswith(ORIGINAL)]
    value, headers = letter(message.value, about, whole_bytes_max=KEPT_BYTES)
    return Outgoing(message.topic, message.partition, message.key, value, headers)


def _event(state: orders.Confirmed | orders.Released, now_ms: Millis) -> AnyOrderEvent:
    order = state.order
    kind: type[OrderConfirmed | OrderReleased | OrderRefunded] = OrderConfirmed
    reason, refund = None, "none"
    if isinstance(state, orders.Released):
        kind = OrderRefunded if state.refund == "done" else OrderReleased
        reason, refund = state.reason, state.refund
    return kind(
        purchase_id=order.purchase_id,
        version=state.version,
        buyer_id=order.buyer_id,  # type: ignore[arg-type]
        product_id=order.product_id,
        quantity=order.quantity,
        status=state.status,
        reservation=order.reservation,
        reservation_no=order.reservation_no,
        unit_price_minor=order.unit_price_minor,
        currency=order.currency,
        payment_method=order.payment_method,
        occurred_at_ms=now_ms,
        reason=reason,
        refund=refund,  # type: ignore[arg-type]
        traceparent=order.traceparent,
    )
