"""Every no over HTTP as an RFC 9457 problem document. Pure.

Must not hold text from a request that could be mistaken for ours: details are our own sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

CONTENT_TYPE = b"application/problem+json"
TYPE_PREFIX = "/problems/"
_encode = msgspec.json.Encoder().encode
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Kind:
    """A stable type of problem. `retryable`: the same request may succeed later. `meaning`, `advice`: Markdown."""

    slug: str
    status: int
    title: str
    meaning: str = ""
    advice: str = ""
    retryable: bool = False

    @property
    def type(self) -> str:
        """The address of its page, on any listener."""
        return TYPE_PREFIX + self.slug

    def page(self) -> str:
        """What is to be read there, in Markdown."""
        again = "The same request may succeed later" if self.retryable else "Repeating the request changes nothing"
        return (
            f"# {self.title}\n\n`{self.status}`, type `{self.type}`\n\n{self.meaning}\n\n**What to do.** {self.advice}"
            f"\n\n{again} (`retryable` is {str(self.retryable).lower()}).\n"
        )


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
                "type": kind.type,
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
        if self.kind.slug == "unauthenticated":
            headers.append((b"www-authenticate", b"Bearer"))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


class ProblemError(Exception):
    """Carries a problem out of a FastAPI route; a hot path returns problems instead."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.kind.slug)
        self.problem = problem


def granted(given: _T | Problem) -> _T:
    """What was given, unless it is a no. Raises ProblemError."""
    if isinstance(given, Problem):
        raise ProblemError(given)
    return given
