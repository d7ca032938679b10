"""The rules for requests: its headers, its size, the Idempotency-Key, `Prefer`. Pure.

Every function answers with a value or with the Problem that says why not; hot path and FastAPI routes obey both.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.http import problems
from service.problem_details import Problem

BODY_BYTES_MAX = 4_096
KEY_LENGTH_MAX = 255
KEY_PATTERN = r'^([!#-~]([ -~]*[!-~])?|"[ -~]+")$'  # on the wire: bare, or quoted
WAIT_S_MAX = 5
Headers = Mapping[bytes, bytes | None]  # lower-case name -> value; None: sent more than once
CREDENTIALS = (b"authorization", b"x-user-id")
_WANTED = {*CREDENTIALS, *b"content-type content-length content-encoding idempotency-key prefer traceparent".split()}
_JSON_TYPE = re.compile(rb'application/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)


class PurchaseHead(NamedTuple):
    """The headers of a purchase, read. `refused`: before a byte of the body is read."""

    refused: Problem | None
    key: str | Problem
    credentials: Headers
    wait_s: int | None
    responds_async: bool
    traceparent: bytes | None


def purchase_head(pairs: Iterable[tuple[bytes, bytes]]) -> PurchaseHead:
    """Read the headers of a purchase, given as lower-cased ASGI pairs."""
    headers = pick(pairs)
    return PurchaseHead(
        check_media(headers),
        idempotency_key(headers),
        {name: headers[name] for name in CREDENTIALS if name in headers},
        wait_seconds(headers),
        responds_async(headers),
        headers.get(b"traceparent"),
    )


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
    value = headers.get(b"prefer")  # few purchases have any
    return value.split(b",") if value else ()


def without_duplicates(body: bytes) -> Problem | None:
    """Check thoroughly a body that is suspicious or known to be wrong."""
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
