"""What the two FastAPI apps share: bodies are bounded before they are parsed, and every no is a problem document."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import admission, problems
from gateway.lookup import Undetermined
from gateway.purchase import read_body, respond
from gateway.store import Away
from service.problem_details import Kind, Problem, Refused
from service.problem_handlers import add_problem_handlers, answer
from telemetry.ops import Checks
from telemetry.tracing import new_traceparent, trace_id_of

SCHEMAS = "#/components/schemas/"
NULL = "<null>"  # in examples: FastAPI leaves null out of a description
EXAMPLE_TRACE = "0af7651916cd43dd8448eb211c80319c"
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_BY_STATUS = {
    400: problems.MALFORMED,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    422: problems.INVALID_BODY,
}


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
        told = found.setdefault(kind.status, {"description": ""})
        told["description"] += f"{', ' if told['description'] else ''}{kind.slug}"
        media = told.setdefault("content", {}).setdefault("application/problem+json", described_by(ProblemDocument))
        example = msgspec.json.decode(Problem(kind, f"{kind.title}.").body(EXAMPLE_TRACE))
        media.setdefault("examples", {})[kind.slug] = {"summary": kind.title, "value": example}
        if kind.retryable:
            told["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return found


def described_by(shape: type[msgspec.Struct]) -> dict[str, Any]:
    """The OpenAPI description of content of this shape; `docs.py` puts the shapes of an app into its description."""
    return {"schema": {"$ref": f"{SCHEMAS}{shape.__name__}"}}


def answers(status: int, shape: type[msgspec.Struct], description: str, example: object, **headers: str) -> Responses:
    """The OpenAPI description of one good answer."""
    content = {"application/json": described_by(shape) | {"example": replaced(example, None, NULL)}}
    told: dict[str, Any] = {"description": description, "content": content}
    if headers:
        shown = {name.replace("_", "-"): what for name, what in headers.items()}
        told["headers"] = {n: {"description": what, "schema": {"type": "string"}} for n, what in shown.items()}
    return {status: told}


def replaced(value: object, old: object, new: object) -> object:
    """A JSON value with `new` wherever it held `old`."""
    if isinstance(value, dict):
        return {key: replaced(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, old, new) for each in value]
    return new if value == old else value


def event_stream(what: str) -> Responses:
    """The OpenAPI description of server-sent events."""
    return {200: {"description": f"server-sent events: {what}", "content": {"text/event-stream": {}}}}


class BodyGuard:
    """Reads the bounded body of a request before the app sees it, so that no route can read past the limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body in hand, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        headers = admission.pick(scope["headers"])
        unknown = headers.get(b"content-length", b"0") == b"0"  # it is empty, or comes in chunks
        refused = admission.check_media(headers, empty=unknown)
        body = refused if refused is not None else await read_body(receive)
        if body is None:
            return
        if isinstance(body, bytes) and body:
            body = admission.check_media(headers) or admission.without_duplicates(body) or body
        if isinstance(body, Problem):
            trace_id = trace_id_of(new_traceparent(0.0))
            await respond(send, body.kind.status, body.response_headers(), body.body(trace_id))
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)


async def says_nothing(request: Request) -> None:
    """For routes that need no body: who sends one all the same says `{}`. Raises Refused."""
    if b"".join((await request.body()).split()) not in (b"", b"{}"):
        raise Refused(Problem(problems.INVALID_BODY, "There is nothing to say in a body here; send none."))


def health(checks: Checks, *, verbose: bool) -> Response:
    """The answer of /livez and /readyz."""
    failed = {name: state for name, state in checks.items() if state is not True}
    if failed:
        return answer(Problem(problems.UNAVAILABLE, "Not ready.", extra={"checks": failed}))
    shown: Mapping[str, object] = {"status": "ok"} | ({"checks": dict(checks)} if verbose else {})
    return Response(msgspec.json.encode(shown), media_type="application/json")


class Probes(NamedTuple):
    """What the process says of itself: it works, it has begun, send it buyers."""

    live: Callable[[], Checks]
    started: Callable[[], Checks]
    ready: Callable[[], Checks]

    def add_to(self, app: FastAPI) -> None:
        """Add /livez, /startupz and /readyz."""

        def probe(checks: Callable[[], Checks]) -> Callable[[Request], Awaitable[Response]]:
            async def asked(request: Request) -> Response:
                return health(checks(), verbose="verbose" in request.query_params)

            return asked

        for path, checks in (("/livez", self.live), ("/startupz", self.started), ("/readyz", self.ready)):
            app.add_route(path, probe(checks), include_in_schema=False)


def add_handlers(app: FastAPI) -> None:
    """Make every error of this app a problem document."""

    async def away(_: Request, error: Exception) -> Response:
        unsure = "It cannot be told now whether there is such a purchase; ask again."
        detail = unsure if isinstance(error, Undetermined) else "The database cannot be asked now."
        return answer(Problem(problems.UNAVAILABLE, detail, retry_after_s=1))

    failed = Problem(problems.INTERNAL, "The gateway failed; the log of the gateway says why.")
    add_problem_handlers(app, _BY_STATUS, failed, {("header", "idempotency-key"): problems.KEY_INVALID})
    app.add_exception_handler(Away, away)
