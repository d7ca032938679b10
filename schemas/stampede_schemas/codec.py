"""Bytes to messages and back: msgspec JSON, encoders and decoders built once. Knows the limits of a batch."""

import re
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar
from zlib import crc32

import msgspec

from stampede_schemas.decisions import AnyDecision, DecisionsRecord, Envelope, UnreadableReason
from stampede_schemas.identifiers import Millis, WriterEpoch
from stampede_schemas.order_commands import AnyCommand
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import AnyRequest, PurchaseRequested, ReleaseRequested, RequestBatch
from stampede_schemas.snapshots import AnySnapshotRecord
from stampede_schemas.upcasts import DECISION_UPCASTS, KNOWN_REQUEST_TYPES, REQUEST_UPCASTS

REQUESTS_PER_RECORD_MAX = 500
RECORD_BYTES_MAX = 512 * 1024
# Of one purchase or release; a plain one has at most some 620. A release is answered with texts of its purchase, so
# without this limit 500 short releases of purchases full of emoji or escapes would get an answer that Kafka refuses.
REQUEST_BYTES_MAX = 768
# Its release names a reservation and a reason instead of buyer, method and fingerprint: at most 8 bytes more. One that
# could not be read would hold the units for ever.
PURCHASE_BYTES_MAX = REQUEST_BYTES_MAX - 8

# How deep msgspec follows brackets (some 900) depends on how deep its caller stands: two readers could differ. What we
# write is four deep.
NESTING_MAX = 600
# A text without an end is one to the end of the record: looked for again from each quotation mark, 100 KB of `"\"\"…`
# took half a minute.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEPS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_NO_BRACKETS = bytes(byte for byte, step in enumerate(_STEPS) if not step)


_encode = msgspec.json.Encoder().encode
_batch = msgspec.json.Decoder(RequestBatch)
_request: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_envelope = msgspec.json.Decoder(Envelope)
_decisions = msgspec.json.Decoder(list[AnyDecision])
_decision: msgspec.json.Decoder[AnyDecision] = msgspec.json.Decoder(AnyDecision)
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_command: msgspec.json.Decoder[AnyCommand] = msgspec.json.Decoder(AnyCommand)
_order_event: msgspec.json.Decoder[AnyOrderEvent] = msgspec.json.Decoder(AnyOrderEvent)
_snapshot: msgspec.json.Decoder[AnySnapshotRecord] = msgspec.json.Decoder(AnySnapshotRecord)

# msgspec decodes text late and recurses on nesting: bad bytes show themselves in three ways.
_NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_T = TypeVar("_T")
_V = TypeVar("_V", bytes, msgspec.Raw)


class _Head(msgspec.Struct):
    type: str
    v: int = 1


_head = msgspec.json.Decoder(_Head)


class UnreadableMessage(ValueError):
    """A message that can never be read; `reason` is the stable word for why."""

    def __init__(self, reason: UnreadableReason) -> None:
        super().__init__(reason)
        self.reason: UnreadableReason = reason


def source_crc(value: bytes | None) -> int:
    """CRC-32 of a `requests` record's value; a tombstone counts as empty."""
    return crc32(value or b"")


def encode(message: msgspec.Struct) -> bytes:
    """The wire form of any one message."""
    return _encode(message)


def encode_requests(requests: list[AnyRequest]) -> bytes:
    """The value of a `requests` record. The caller keeps to 1..500 requests and 512 KiB."""
    return _encode({"requests": requests})


def split_requests(value: bytes | None) -> list[msgspec.Raw]:
    """The requests of a record, each still undecoded.

    Raises:
        UnreadableMessage: the record as a whole cannot be read, is empty, or is over the limits.
    """
    if value is None:
        raise UnreadableMessage("empty")
    if len(value) > RECORD_BYTES_MAX:
        raise UnreadableMessage("too_large")
    if _too_deep(value):
        raise UnreadableMessage("not_json")
    try:
        requests = _batch.decode(value).requests
    except msgspec.ValidationError:
        raise UnreadableMessage("not_a_request") from None
    except _NOT_READABLE:
        raise UnreadableMessage("not_json") from None
    if not requests:
        raise UnreadableMessage("empty")
    if len(requests) > REQUESTS_PER_RECORD_MAX:
        raise UnreadableMessage("too_many")
    return requests


def _too_deep(value: bytes) -> bool:
    """Whether brackets are nested beyond the limit. An ordinary record has too few of them, and one `]`, at its end."""
    arrays = 1 if value.find(b"]") == len(value) - 2 else value.count(b"]")
    if value.count(b"}") + arrays <= NESTING_MAX:
        return False  # what is opened and never closed is no JSON at any depth
    brackets = _TEXT.sub(b"", value).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > NESTING_MAX


def decode_request(raw: msgspec.Raw | bytes) -> AnyRequest:
    """One request in its newest form (older versions are lifted by `upcasts`).

    Raises:
        UnreadableMessage: it is no request of any version that was ever written.
    """
    try:
        request = _request.decode(raw)
    except _NOT_READABLE:
        return _decode_older(raw)
    size = memoryview(raw).nbytes
    if size > PURCHASE_BYTES_MAX and (
        type(request) is PurchaseRequested or (size > REQUEST_BYTES_MAX and type(request) is ReleaseRequested)
    ):
        raise UnreadableMessage("too_large")
    if type(request) is PurchaseRequested and _holds_a_nul(request):
        raise UnreadableMessage("not_a_request")
    return request


def _holds_a_nul(purchase: PurchaseRequested) -> bool:
    """Whether some text of it can never be in Postgres, so that it could have no row. (Nothing else makes rows.)"""
    return (
        "\0" in purchase.purchase_id
        or "\0" in purchase.buyer_id
        or "\0" in purchase.product_id
        or "\0" in purchase.payment_method
        or "\0" in purchase.fingerprint
        or (purchase.traceparent is not None and "\0" in purchase.traceparent)
    )


def _decode_older(raw: msgspec.Raw | bytes) -> AnyRequest:
    try:
        head = _head.decode(raw)
        if head.type not in KNOWN_REQUEST_TYPES:
            raise UnreadableMessage("unknown_type")
        if (upcast := REQUEST_UPCASTS.get((head.type, head.v))) is not None:
            return upcast(bytes(raw))
        raise UnreadableMessage("not_a_request" if head.v == 1 else "unknown_version")
    except msgspec.ValidationError:
        raise UnreadableMessage("not_a_request") from None
    except _NOT_READABLE:
        raise UnreadableMessage("not_json") from None


def encode_decisions(
    source_offset: int, crc: int, load: WriterEpoch, start: int, appended_at_ms: Millis, decisions: list[AnyDecision]
) -> bytes:
    """The value of the `decisions` record that answers one `requests` record."""
    return _encode(DecisionsRecord(source_offset, crc, load, start, appended_at_ms, decisions))


def decode_envelope(value: bytes | None) -> Envelope | None:
    """The envelope of a `decisions` record; None if unreadable, which makes the record void."""
    try:
        return _envelope.decode(value) if value else None
    except _NOT_READABLE:
        return None


def decode_decisions(envelope: Envelope) -> list[AnyDecision]:
    """The decisions of a counting record in their newest form (older versions are lifted by `upcasts`).

    Raises:
        msgspec.DecodeError: unknown content. The reader must stop: skipping it would fork the readers.
    """
    try:
        return _strict(_decisions.decode, envelope.decisions)
    except msgspec.ValidationError:
        return [_decode_decision(raw) for raw in _strict(_raws.decode, envelope.decisions)]


def _decode_decision(raw: msgspec.Raw) -> AnyDecision:
    try:
        return _strict(_decision.decode, raw)
    except msgspec.ValidationError:
        head = _strict(_head.decode, raw)
        if (upcast := DECISION_UPCASTS.get((head.type, head.v))) is None:
            raise
        return _strict(upcast, bytes(raw))


def decode_command(value: bytes) -> AnyCommand:
    """A message of `order-commands`. Raises msgspec.DecodeError when it cannot be read."""
    return _strict(_command.decode, value)


def decode_order_event(value: bytes) -> AnyOrderEvent:
    """A message of `orders`. Raises msgspec.DecodeError when it cannot be read."""
    return _strict(_order_event.decode, value)


def decode_snapshot(value: bytes) -> AnySnapshotRecord:
    """A record of `stock-snapshots`. Raises msgspec.DecodeError when it cannot be read."""
    return _strict(_snapshot.decode, value)


def _strict(decode: Callable[[_V], _T], value: _V) -> _T:
    """Bad UTF-8 and nesting beyond the stack are DecodeErrors too: callers have one thing to catch."""
    try:
        return decode(value)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
