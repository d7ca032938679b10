"""How both apps describe their routes in OpenAPI: answers, problems, the Idempotency-Key."""

from typing import Any

import msgspec
from fastapi import Header

from gateway.http import problems, requests
from service.problem_details import Kind, Problem

SCHEMAS = "#/components/schemas/"
NULL = "<null>"  # in examples: FastAPI leaves null out of a description
EXAMPLE_TRACE = "0af7651916cd43dd8448eb211c80319c"


class ProblemDocument(msgspec.Struct):
    """RFC 9457, with what a client needs for deciding whether to try again. Some types have members of their own."""

    type: str
    title: str
    status: int
    detail: str
    retryable: bool
    trace_id: str


Responses = dict[int | str, dict[str, Any]]
ANYWHERE = (problems.MALFORMED, problems.INVALID_BODY, problems.OVERLOADED, problems.UNAVAILABLE)
OPEN: dict[str, Any] = {"security": []}  # a route for everybody
WITH_BODY = (*ANYWHERE, problems.TOO_LARGE, problems.UNSUPPORTED_MEDIA)
OPERATED = (problems.KEY_INVALID, problems.UNAUTHENTICATED, problems.FORBIDDEN, *WITH_BODY)


def problem_responses(*kinds: Kind) -> Responses:
    """The OpenAPI description of these ways of saying no, each with an example."""
    found: Responses = {}
    for kind in sorted({*kinds}, key=lambda kind: (kind.status, kind.slug)):
        described = found.setdefault(kind.status, {"description": ""})
        described["description"] += f"{', ' if described['description'] else ''}{kind.slug}"
        media = described.setdefault("content", {}).setdefault(
            "application/problem+json", described_by(ProblemDocument)
        )
        example = msgspec.json.decode(Problem(kind, f"{kind.title}.").body(EXAMPLE_TRACE))
        media.setdefault("examples", {})[kind.slug] = {"summary": kind.title, "value": example}
        if kind.retryable:
            described["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return found


def described_by(shape: type[msgspec.Struct]) -> dict[str, Any]:
    """The OpenAPI description of content of this shape; `docs.py` puts the shapes of an app into its description."""
    return {"schema": {"$ref": f"{SCHEMAS}{shape.__name__}"}}


def answers(status: int, shape: type[msgspec.Struct], description: str, example: object, **headers: str) -> Responses:
    """The OpenAPI description of one good answer."""
    content = {"application/json": described_by(shape) | {"example": replaced(example, None, NULL)}}
    described: dict[str, Any] = {"description": description, "content": content}
    if headers:
        shown = {name.replace("_", "-"): what for name, what in headers.items()}
        described["headers"] = {n: {"description": what, "schema": {"type": "string"}} for n, what in shown.items()}
    return {status: described}


def replaced(value: object, old: object, new: object) -> object:
    """A JSON value with `new` wherever it held `old`."""
    if isinstance(value, dict):
        return {key: replaced(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, old, new) for each in value]
    return new if value == old else value


def key_header(description: str, example: str) -> Any:
    """The Idempotency-Key as a parameter of a route."""
    return Header(
        min_length=1,
        max_length=requests.KEY_LENGTH_MAX,
        pattern=requests.KEY_PATTERN,
        description=description,
        examples=[example],
    )


def event_stream(what: str) -> Responses:
    """The OpenAPI description of server-sent events."""
    return {200: {"description": f"server-sent events: {what}", "content": {"text/event-stream": {}}}}
