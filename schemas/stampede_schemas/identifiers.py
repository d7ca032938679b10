"""The words of Stampede as types: ids, instants, amounts and the bounds each of them has on the wire."""

from typing import Annotated, NewType

from msgspec import Meta, Struct

PurchaseId = NewType("PurchaseId", str)
ProductId = NewType("ProductId", str)
BuyerId = NewType("BuyerId", str)  # a keyed pseudonym, never a name, an e-mail or an address
RequestId = NewType("RequestId", str)
WriterEpoch = NewType("WriterEpoch", str)  # 32 hex digits, new each time a worker loads a partition
Millis = NewType("Millis", int)  # an instant: milliseconds since the epoch, UTC

ID_LENGTH_MAX = 96
QUANTITY_MAX = 1_000
STOCK_MAX = 1_000_000_000
PRICE_MINOR_MAX = 1_000_000_000_000
HOLD_MS_MAX = 7 * 24 * 3_600_000
INSTANT_MS_MAX = 253_402_300_799_999  # the last millisecond of the year 9999

_id = Meta(min_length=1, max_length=ID_LENGTH_MAX)
PurchaseIdField = Annotated[PurchaseId, _id]
ProductIdField = Annotated[ProductId, _id]
BuyerIdField = Annotated[BuyerId, _id]
# Operators' requests are not on the hot path, so their texts can be held to characters that cost a byte each: an
# answer repeats the whole product. (`$` would let a newline at the end through.)
_plain = Meta(min_length=1, max_length=ID_LENGTH_MAX, pattern=r"^[!#-\[\]-~]+(?![\s\S])")
RequestIdField = Annotated[RequestId, _plain]
ListedProductIdField = Annotated[ProductId, _plain]
ProductName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+(?![\s\S])")]
MillisField = Annotated[Millis, Meta(ge=0, le=INSTANT_MS_MAX)]
OffsetField = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
Stock = Annotated[int, Meta(ge=0, le=STOCK_MAX)]
PriceMinor = Annotated[int, Meta(ge=0, le=PRICE_MINOR_MAX)]
Currency = Annotated[str, Meta(min_length=3, max_length=3, pattern=r"^[A-Z]{3}")]
PaymentMethod = Annotated[str, Meta(min_length=1, max_length=32)]
Fingerprint = Annotated[str, Meta(min_length=1, max_length=64)]
Traceparent = Annotated[str, Meta(max_length=64)]


def request_key(request_id: RequestId) -> RequestId:
    """What an operator's request id says of the key: all of it, but for the fingerprint of the content at its end.

    Ids are `r` and 32 hex digits, then since the fingerprints `-` and 16 more.
    """
    keyed = len(request_id) == 50 and request_id[33] == "-"
    return RequestId(request_id[:33]) if keyed else request_id


class Position(Struct, frozen=True, array_like=True, order=True):
    """Where a request stands in the log, written as `[partition, offset, index]`. It names a reservation."""

    partition: int
    offset: int
    index: int
