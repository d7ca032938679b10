"""Every way in which the gateway says no, as RFC 9457 problems. Pure; one page per kind stands in docs/problems/.

Must not hold text from a request that could be mistaken for ours: details are our own sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

CONTENT_TYPE = b"application/problem+json"
TYPE_PREFIX = "/problems/"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Kind:
    """A stable type of problem. `retryable`: the same request may succeed later."""

    slug: str
    status: int
    title: str
    retryable: bool = False


MALFORMED = Kind("malformed-request", 400, "The request cannot be read")
KEY_INVALID = Kind("idempotency-key-invalid", 400, "The Idempotency-Key header is missing or unusable")
UNAUTHENTICATED = Kind("unauthenticated", 401, "Nobody vouches for who you are")
SIGNATURE_INVALID = Kind("signature-invalid", 401, "The report is not signed as it must be")
FORBIDDEN = Kind("forbidden", 403, "You may not do this")
NOT_FOUND = Kind("not-found", 404, "There is nothing here")
UNKNOWN_PRODUCT = Kind("unknown-product", 404, "There is no such product")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "This cannot be done here")
REQUEST_TIMEOUT = Kind("request-timeout", 408, "The request did not arrive in time", retryable=True)
SOLD_OUT = Kind("sold-out", 409, "Sold out", retryable=True)
NOT_OPEN = Kind("not-open", 409, "The sale is not open", retryable=True)
REJECTED = Kind("rejected", 409, "The purchase was rejected")
NOT_CANCELLABLE = Kind("not-cancellable", 409, "The purchase has ended already")
IN_FLIGHT = Kind("in-flight", 409, "The same request is still on its way", retryable=True)
PRODUCT_CONFLICT = Kind("product-conflict", 409, "The product is not in a state for this")
RESTOCK_REJECTED = Kind("restock-rejected", 409, "The stock cannot change by that much")
TOO_LARGE = Kind("too-large", 413, "The body is too large")
URL_TOO_LONG = Kind("url-too-long", 414, "The URL is too long")
UNSUPPORTED_MEDIA = Kind("unsupported-media-type", 415, "The body must be plain JSON")
INVALID_BODY = Kind("invalid-body", 422, "The request does not say what it must")
KEY_REUSED = Kind("idempotency-key-reused", 422, "This Idempotency-Key was used for another request")
RATE_LIMITED = Kind("rate-limited", 429, "Too many requests", retryable=True)
HEADERS_TOO_LARGE = Kind("headers-too-large", 431, "The headers are too large")
INTERNAL = Kind("internal-error", 500, "The gateway failed", retryable=True)
OVERLOADED = Kind("overloaded", 503, "More is asked than can be answered now", retryable=True)
OUTCOME_UNKNOWN = Kind("outcome-unknown", 503, "It is not known whether the purchase was accepted", retryable=True)
UNAVAILABLE = Kind("unavailable", 503, "A part of the system is away", retryable=True)

KINDS: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))


@dataclass(frozen=True, slots=True)
class Problem:
    """One answer that is a no. `extra` members join the body, `headers` the response; Retry-After is in seconds."""

    kind: Kind
    detail: str
    extra: Mapping[str, object] = field(default_factory=dict)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    retry_after_s: int | None = None
    close: bool = False  # the connection cannot be used on: the request's body was left unread

    def body(self, trace_id: str) -> bytes:
        """The problem document."""
        kind = self.kind
        return _encode(
            {
                "type": TYPE_PREFIX + kind.slug,
                "title": kind.title,
                "status": kind.status,
                "detail": self.detail,
                "retryable": kind.retryable,
                "trace_id": trace_id,
                **self.extra,
            }
        )

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """All but the length."""
        headers = [(b"content-type", CONTENT_TYPE), (b"cache-control", b"no-store"), *self.headers]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.kind is UNAUTHENTICATED:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


class Refused(Exception):
    """Carries a problem out of a FastAPI route; the hot path returns problems instead."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.kind.slug)
        self.problem = problem
