"""What may come in: the rules for headers, body, idempotency key and identity of a purchase. Pure.

Every function answers with a value or with the Problem that says why not. Must not do I/O, read a clock or know who
serves HTTP; the purchase endpoint and the FastAPI routes both obey it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import msgspec

from gateway import problems
from service.problem_details import Problem
from stampede_schemas.identifiers import QUANTITY_MAX, BuyerId, ProductId, PurchaseId, RequestId
from stampede_schemas.topics import PARTITIONS, partition_of

BODY_BYTES_MAX = 4_096
KEY_LENGTH_MAX = 255
KEY_PATTERN = r'^([!#-~]([ -~]*[!-~])?|"[ -~]+")$'  # on the wire: bare, or quoted
WAIT_S_MAX = 5
IDENTITY_SECRET_BYTES_MIN = 32
PAYMENT_METHOD_DEFAULT = "ok"  # what the simulated provider approves; real ones are named by the buyer
PRODUCT_ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"  # canonical: one spelling per product, safe in paths and logs
BUYER_ID_PATTERN = r"^b[0-9a-f]{32}$"  # a pseudonym, as IdentityKey makes them
PAYMENT_METHOD_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,31}$"

Headers = Mapping[bytes, bytes | None]  # lower-case name -> value; None: sent more than once
_WANTED = frozenset(
    b"content-type content-length content-encoding idempotency-key prefer traceparent authorization x-user-id".split()
)
_JSON_TYPE = re.compile(rb'application/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
ID_FORM = "2"  # 1: without product and partition
_PURCHASE_ID = re.compile(r"[a-z0-9]{4}-(?:([0-9a-f]{2})-)?[0-9a-f]{32}")
partition_of_product = lru_cache(maxsize=10_000)(partition_of)  # a sale is a few products
_product_id = re.compile(PRODUCT_ID_PATTERN)
_BARE_QUOTES = {False: 6, True: 10}  # quotation marks in a body without duplicates: keys and strings, twice each

# msgspec matches with Python's re, whose $ lets a final newline through; \Z does not.
_ProductId = Annotated[str, msgspec.Meta(pattern=PRODUCT_ID_PATTERN[:-1] + r"\Z", examples=["tea"])]
_PaymentMethod = Annotated[
    str,
    msgspec.Meta(pattern=PAYMENT_METHOD_PATTERN[:-1] + r"\Z", extra_json_schema={"default": PAYMENT_METHOD_DEFAULT}),
]


class PurchaseOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to buy. Unknown fields are refused."""

    product_id: _ProductId
    quantity: Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX, examples=[1])]
    payment_method: _PaymentMethod | msgspec.UnsetType = msgspec.UNSET


class Subject(NamedTuple):
    """Who asks: the party that vouches, and its name for the buyer. Never written anywhere as it is."""

    issuer: str
    name: str
    roles: frozenset[str] = frozenset()


class PurchasePlace(NamedTuple):
    """Where the log keeps a purchase; `partition` None: an id of the form that did not say it."""

    partition: int | None


_body = msgspec.json.Decoder(PurchaseOrder)


def pick(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes | None]:
    """The headers that mean something here, from lower-cased ASGI pairs."""
    found: dict[bytes, bytes | None] = {}
    for name, value in headers:
        if name in _WANTED:
            found[name] = None if name in found else value
    return found


def check_media(headers: Headers, *, empty: bool = False) -> Problem | None:
    """Refuse what is not a small uncompressed JSON body, before a byte of it is read; an `empty` one has no type."""
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding is None or encoding.strip().lower() != b"identity":
        return Problem(problems.UNSUPPORTED_MEDIA, "Send the body without a Content-Encoding.", close=True)
    media = headers.get(b"content-type", b"")
    if not empty and (media is None or (media != b"application/json" and not _JSON_TYPE.fullmatch(media.strip()))):
        return Problem(problems.UNSUPPORTED_MEDIA, "Send Content-Type: application/json.", close=True)
    return check_length(headers)


def check_length(headers: Headers) -> Problem | None:
    """Refuse a body that announces itself as too large."""
    length = headers.get(b"content-length", b"0") or b""
    if not length.isdigit():
        return Problem(problems.MALFORMED, "The Content-Length is not a number.", close=True)
    return too_large() if len(length) > len(str(BODY_BYTES_MAX)) or int(length) > BODY_BYTES_MAX else None


def too_large() -> Problem:
    """The answer to a body over the limit; the rest of it stays unread."""
    return Problem(problems.TOO_LARGE, f"A body has at most {BODY_BYTES_MAX} bytes.", close=True)


def idempotency_key(headers: Headers) -> str | Problem:
    """The key, bare or quoted: 1 to 255 printable ASCII characters, sent once."""
    value = headers.get(b"idempotency-key", b"")
    if value is None:
        return Problem(problems.KEY_INVALID, "The Idempotency-Key header was sent more than once.")
    if value[:1] == b'"':
        if len(value) < 2 or value[-1:] != b'"':
            return Problem(problems.KEY_INVALID, "The quoted Idempotency-Key does not end with a quotation mark.")
        value = re.sub(rb'\\(["\\])', rb"\1", value[1:-1])
    if not value:
        return Problem(problems.KEY_INVALID, "Send an Idempotency-Key header: a new one for each new purchase.")
    if len(value) > KEY_LENGTH_MAX:
        return Problem(problems.KEY_INVALID, f"An Idempotency-Key has at most {KEY_LENGTH_MAX} characters.")
    text = value.decode("latin-1")
    if not (text.isascii() and text.isprintable()):
        return Problem(problems.KEY_INVALID, "An Idempotency-Key is made of printable ASCII characters.")
    return text


def wait_seconds(headers: Headers) -> int | None:
    """N of `Prefer: wait=N`, at most 5; None without it. A preference that cannot be read is ignored (RFC 7240)."""
    for preference in _preferences(headers):
        name, _, value = preference.split(b";")[0].strip().partition(b"=")
        if name.strip().lower() == b"wait" and (digits := value.strip().strip(b'"')).isdigit() and len(digits) < 10:
            return min(int(digits), WAIT_S_MAX)
    return None


def responds_async(headers: Headers) -> bool:
    """Whether `Prefer: respond-async` asks not to wait: with `wait=N` beside it, not beyond that."""
    return any(preference.split(b";")[0].strip().lower() == b"respond-async" for preference in _preferences(headers))


def _preferences(headers: Headers) -> Sequence[bytes]:
    told = headers.get(b"prefer")  # few purchases have any
    return told.split(b",") if told else ()


def purchase_body(body: bytes) -> PurchaseOrder | Problem:
    """The body, if it is one JSON object with exactly the known fields, each once."""
    try:
        parsed = _body.decode(body)
        once = b"\\" not in body and body.count(b'"') == _BARE_QUOTES[parsed.payment_method is not msgspec.UNSET]
        return parsed if once else without_duplicates(body) or parsed
    except msgspec.ValidationError as error:
        return without_duplicates(body) or Problem(problems.INVALID_BODY, f"{error}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return without_duplicates(body) or Problem(problems.INVALID_BODY, "A value is not one that JSON has.")


def without_duplicates(body: bytes) -> Problem | None:
    """The slow, thorough look at a body that is suspicious or known to be wrong."""
    repeated: list[str] = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated.append("")
        return found

    try:
        json.loads(body.decode("utf-8"), object_pairs_hook=members, parse_int=len, parse_float=len)
    except (ValueError, RecursionError):
        return Problem(problems.MALFORMED, "The body is not one JSON value in UTF-8.")
    return Problem(problems.MALFORMED, "A field of the body appears more than once.") if repeated else None


def is_product_id(text: str) -> bool:
    """Whether this is the canonical spelling of a possible product id."""
    return _product_id.fullmatch(text) is not None


class IdentityKey:
    """The secret behind purchase ids and buyer pseudonyms; all gateways of an installation share it.

    Purchase ids are derived, never stored, so every gateway gives the same request the same id. The parts are hashed
    with their lengths: no two different lists of parts look alike.
    """

    def __init__(self, secret: str) -> None:
        if len(secret.encode()) < IDENTITY_SECRET_BYTES_MIN:
            raise ValueError(f"the identity key must have at least {IDENTITY_SECRET_BYTES_MIN} bytes")
        self._states = {
            use: blake2b(digest_size=16, key=blake2b(secret.encode(), digest_size=32, person=use).digest())
            for use in (b"purchase", b"buyer", b"request", b"fingerprint")
        }
        self.cursor_key = blake2b(secret.encode(), digest_size=32, person=b"cursor").digest()
        self.fingerprint = self._hash(b"fingerprint", ID_FORM)  # gateways that make other ids are told apart by it
        self.kid = self.fingerprint[:4]

    def _hash(self, use: bytes, *parts: str) -> str:
        state = self._states[use].copy()
        state.update("".join([f"{len(part)}:{part}" for part in parts]).encode())
        return state.hexdigest()

    def purchase_id(self, subject: Subject, method: str, route: str, product_id: ProductId, key: str) -> PurchaseId:
        """The id of what `subject` asked for with this Idempotency-Key; it names the partition of the product."""
        hashed = self._hash(b"purchase", subject.issuer, subject.name, method, route, product_id, key)
        return PurchaseId(f"{self.kid}-{partition_of_product(product_id):02x}-{hashed}")

    def buyer_id(self, subject: Subject) -> BuyerId:
        """The pseudonym under which a buyer appears in the log."""
        return BuyerId("b" + self._hash(b"buyer", subject.issuer, subject.name))

    def request_id(self, *parts: str) -> RequestId:
        """The id of an operator's request, the same for the same parts."""
        return RequestId("r" + self._hash(b"request", *parts))

    def place_of(self, text: str) -> PurchasePlace | None:
        """Where the log keeps the purchase with this id; None: it is none of ours."""
        if (found := _PURCHASE_ID.fullmatch(text)) is None:
            return None
        if found[1] is None:
            return PurchasePlace(None)
        partition = int(found[1], 16)
        return PurchasePlace(partition) if text.startswith(self.kid) and partition < PARTITIONS else None


def fingerprint(body: PurchaseOrder) -> str:
    """Hash of the canonical body: what must be equal when a key is used again."""
    return blake2b(
        msgspec.json.encode([body.product_id, body.quantity, payment_method(body)]), digest_size=16
    ).hexdigest()


def payment_method(body: PurchaseOrder) -> str:
    """The way of paying that was named, or the default."""
    return PAYMENT_METHOD_DEFAULT if body.payment_method is msgspec.UNSET else body.payment_method


def product_of(body: PurchaseOrder) -> ProductId:
    """The product asked for, as the word of the domain."""
    return ProductId(body.product_id)
