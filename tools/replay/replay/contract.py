"""What the wire holds, in the checker's own words: requests with their bounds, decisions, order events.

Written from the design and not from the services' code, so that a mistake there is not repeated here. It knows
shapes only; what is right is said in `model.py` and in the rules.
"""

import re
from itertools import accumulate
from typing import Annotated, Literal

from msgspec import DecodeError, Meta, Raw, Struct, ValidationError, json

REQUESTS_MAX = 500
RECORD_BYTES_MAX = 512 * 1024
NESTING_MAX = 600  # brackets within brackets
LETTER_BYTES_MAX = 1024 * 1024  # of a dead letter that is whole; of more it holds the beginning
LETTER_BEGINNING = 64 * 1024
RELEASE_BYTES_MAX = 768  # on the wire
PURCHASE_BYTES_MAX = 760  # its release may be longer than it
STOCK_MAX = 1_000_000_000
REJECTED_GENERATION = 250_000  # rejections; the fold of a partition remembers the newest generation and the one before
_LAST_INSTANT = 253_402_300_799_999

LogPosition = tuple[int, int, int]  # partition, offset and index of a request: it names a reservation
Id = Annotated[str, Meta(min_length=1, max_length=96)]
Plain = Annotated[str, Meta(min_length=1, max_length=96, pattern=r"^[!#-\[\]-~]+(?![\s\S])")]  # a byte a character
Price = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
Limit = Annotated[int, Meta(ge=1, le=1_000)]
Hold = Annotated[int, Meta(ge=1, le=604_800_000)]
Instant = Annotated[int, Meta(ge=0, le=_LAST_INSTANT)]
Trace = Annotated[str, Meta(max_length=64)]


class Request(Struct, tag_field="type", kw_only=True, gc=False):
    """A request. `v` is the version of its shape; there is one so far."""

    v: Literal[1] = 1
    product_id: Id


class ListRequest(Request, tag="ProductListRequested", kw_only=True, gc=False):
    """Put on sale."""

    product_id: Plain
    request_id: Plain
    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+(?![\s\S])")]
    unit_price_minor: Price
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}(?![\s\S])")]
    stock: Annotated[int, Meta(ge=0, le=STOCK_MAX)]
    per_buyer_limit: Limit
    hold_ms: Hold
    opens_at_ms: Instant | None = None
    closes_at_ms: Instant | None = None


class ChangeRequest(Request, tag="ProductChangeRequested", kw_only=True, gc=False):
    """Change what is named."""

    request_id: Plain
    unit_price_minor: Price | None = None
    per_buyer_limit: Limit | None = None
    opens_at_ms: Instant | None = None
    closes_at_ms: Instant | None = None
    hold_ms: Hold | None = None
    action: Literal["open", "close", "pause"] | None = None


class RetireRequest(Request, tag="ProductRetireRequested", kw_only=True, gc=False):
    """Take off sale for good."""

    request_id: Plain


class RestockRequest(Request, tag="RestockRequested", kw_only=True, gc=False):
    """More units, or fewer."""

    request_id: Plain
    quantity: Annotated[int, Meta(ge=-STOCK_MAX, le=STOCK_MAX)]


class PurchaseRequest(Request, tag="PurchaseRequested", kw_only=True, gc=False):
    """A buyer asks for units."""

    purchase_id: Id
    buyer_id: Id
    quantity: Annotated[int, Meta(ge=1, le=1_000)]
    payment_method: Annotated[str, Meta(min_length=1, max_length=32)]
    fingerprint: Annotated[str, Meta(min_length=1, max_length=64)]
    traceparent: Trace | None = None


class ReleaseRequest(Request, tag="ReleaseRequested", kw_only=True, gc=False):
    """A reservation comes back."""

    purchase_id: Id
    reservation: LogPosition
    reason: Literal[
        "payment_declined", "hold_expired", "cancelled", "cancelled_by_operator", "row_error", "already_decided"
    ]
    traceparent: Trace | None = None


AnyRequest = ListRequest | ChangeRequest | RetireRequest | RestockRequest | PurchaseRequest | ReleaseRequest


class Answer(Struct, omit_defaults=True, gc=False):
    """Any decision: the union of the fields of all kinds, what a kind does not have is at its default."""

    type: str
    product_id: str = ""
    purchase_id: str = ""
    request_id: str = ""
    buyer_id: str = ""
    quantity: int = 0
    payment_method: str = ""
    fingerprint: str = ""
    reason: str = ""
    available_after: int | None = None
    reservation_no: int = 0
    unit_price_minor: int = 0
    currency: str = ""
    hold_ms: int = 0
    reservation: LogPosition | None = None
    of: LogPosition | None = None
    mismatch: bool = False
    name: str = ""
    stock: int = 0
    per_buyer_limit: int = 0
    status: str = ""
    opens_at_ms: int | None = None
    closes_at_ms: int | None = None
    v: Literal[1, 2] = 1


WHOLE = frozenset({"ProductListed", "ProductChanged", "ProductRetired"})
KINDS = WHOLE | {"Restocked", "RestockRejected", "Reserved", "Rejected", "Released", "Ignored", "Unreadable"}
SECOND_VERSIONS = frozenset({"Ignored"})  # kinds that have one


class Envelope(Struct):
    """The frozen five fields of a decisions record, and its content unread."""

    source_offset: int
    source_crc: int
    load: str
    start: int
    appended_at_ms: int
    decisions: Raw


class OrderEvent(Struct):
    """What the checker reads of an event on `orders`."""

    type: str
    purchase_id: str
    version: int
    status: str


class Command(Struct, gc=False):
    """What the checker reads of a record on `order-commands`. Cancellations of products had no place once."""

    type: str
    request_id: str = ""
    purchase_id: str = ""
    product_id: str = ""
    actor: str = ""
    requests_end: int | None = None


class _Batch(Struct):
    requests: list[Raw]


class _Head(Struct):
    type: str
    v: int = 1


_batch, _head = json.Decoder(_Batch).decode, json.Decoder(_Head).decode
_request: json.Decoder[AnyRequest] = json.Decoder(AnyRequest)
_envelope, _answers = json.Decoder(Envelope).decode, json.Decoder(list[Answer]).decode
read_order_event = json.Decoder(OrderEvent).decode
_command = json.Decoder(Command).decode
_TYPES = frozenset(kind.__struct_config__.tag for kind in AnyRequest.__args__)
_PARTITIONED_ID = re.compile(r"[a-z0-9]{4}-([0-9a-f]{2})-[0-9a-f]{32}")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError)


def split(value: bytes | None) -> list[Raw] | str:
    """The requests of a record, undecoded; or why the record as a whole is one unreadable thing."""
    if value is None:
        return "empty"
    if len(value) > RECORD_BYTES_MAX:
        return "too_large"
    if value.count(b"}") + value.count(b"]") > NESTING_MAX and _depth(value) > NESTING_MAX:
        return "not_json"
    try:
        requests = _batch(value).requests
    except ValidationError:
        return "not_a_request"
    except _UNREADABLE:
        return "not_json"
    if len(requests) > REQUESTS_MAX:
        return "too_many"
    return requests or "empty"


def _depth(value: bytes) -> int:
    """How deep brackets outside of texts are nested."""
    bare = b"".join(_ESCAPE.sub(b"", value).split(b'"')[::2])
    steps = (1 if byte in b"[{" else -1 for byte in bare if byte in b"[]{}")
    return max(accumulate(steps), default=0)


def read_request(raw: Raw | bytes) -> AnyRequest | str:
    """One request, or the word for why it can never be read."""
    try:
        request = _request.decode(raw)
    except _UNREADABLE:
        return _why_not(raw)
    size = memoryview(raw).nbytes
    if isinstance(request, PurchaseRequest) and size > PURCHASE_BYTES_MAX:
        return "too_large"
    if isinstance(request, ReleaseRequest) and size > RELEASE_BYTES_MAX:
        return "too_large"
    if isinstance(request, PurchaseRequest) and any("\0" in text for text in _texts(request)):
        return "not_a_request"  # no text in Postgres holds a NUL: it could have no row
    return request


def _texts(purchase: PurchaseRequest) -> tuple[str, ...]:
    plain = (purchase.purchase_id, purchase.buyer_id, purchase.product_id, purchase.payment_method)
    return *plain, purchase.fingerprint, purchase.traceparent or ""


def _why_not(raw: Raw | bytes) -> str:
    try:
        head = _head(raw)
    except ValidationError:
        return "not_a_request"
    except _UNREADABLE:
        return "not_json"
    if head.type not in _TYPES:
        return "unknown_type"
    return "not_a_request" if head.v == 1 else "unknown_version"


def read_command(value: bytes) -> Command | None:
    """One record of `order-commands`, None when it cannot be read."""
    try:
        return _command(value)
    except _UNREADABLE:
        return None


def read_envelope(value: bytes | None) -> Envelope | None:
    """The envelope of a decisions record, None when it cannot be read."""
    try:
        return _envelope(value or b"")
    except _UNREADABLE:
        return None


def read_answers(content: Raw) -> list[Answer] | None:
    """The decisions inside a record, None when one of them is of no known kind."""
    try:
        answers = _answers(content)
    except _UNREADABLE:
        return None
    return answers if all(_known(answer) for answer in answers) else None


def _known(answer: Answer) -> bool:
    return answer.type in KINDS and (answer.v == 1 or answer.type in SECOND_VERSIONS)


def home_of(purchase_id: str) -> int | None:
    """The partition that a purchase's id names; ids of the older form name none."""
    found = _PARTITIONED_ID.fullmatch(purchase_id)
    return int(found[1], 16) if found else None
