"""What the two FastAPI apps share: bodies are bounded before they are parsed, and every no is a problem document."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import admission, problems
from gateway.problems import Problem, Refused
from gateway.purchase import BodyReader, respond
from gateway.store import Away, NotMigrated
from telemetry.ops import Checks
from telemetry.tracing import new_traceparent, trace_id_of

_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_BY_STATUS = {
    400: problems.MALFORMED,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    422: problems.INVALID_BODY,
}


class ProblemDocument(BaseModel):
    """RFC 9457, with what a client needs for deciding whether to try again."""

    type: str
    title: str
    status: int
    detail: str
    retryable: bool
    trace_id: str


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of these error statuses."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {
        status: {"description": problems_of(status), "model": ProblemDocument, "content": content}
        for status in statuses
    }


def problems_of(status: int) -> str:
    """The problem types that come with a status, for readers of the documentation."""
    return ", ".join(kind.slug for kind in problems.KINDS if kind.status == status) or "problem"


class BodyGuard:
    """Reads the bounded body of a request before the app sees it, so that no route can read past the limit."""

    def __init__(self, app: ASGIApp, bodies: BodyReader) -> None:
        self._app, self._bodies = app, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body in hand, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        headers = admission.pick(scope["headers"])
        empty = headers.get(b"content-length", b"0") == b"0" and b"content-type" not in headers
        refused = admission.check_length(headers) if empty else admission.check_media(headers)
        body = refused if refused is not None else await self._bodies.read(receive)
        if body is None:
            return
        if isinstance(body, Problem):
            trace_id = trace_id_of(new_traceparent(0.0))
            await respond(send, body.kind.status, body.response_headers(), body.body(trace_id))
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)


def answer(problem: Problem) -> Response:
    """A problem as a response of FastAPI."""
    response = Response(problem.body(trace_id_of(new_traceparent(0.0))), problem.kind.status)
    response.raw_headers = [*problem.response_headers(), (b"content-length", b"%d" % len(response.body))]
    return response


def health(checks: Checks, *, verbose: bool) -> Response:
    """The answer of /livez and /readyz."""
    failed = {name: state for name, state in checks.items() if state is not True}
    if failed:
        return answer(Problem(problems.UNAVAILABLE, "Not ready.", extra={"checks": failed}))
    shown: Mapping[str, object] = {"status": "ok"} | ({"checks": dict(checks)} if verbose else {})
    return Response(problems._encode(shown), media_type="application/json")


def add_problem_handlers(app: FastAPI) -> None:
    """Make every error of this app a problem document."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return answer(error.problem)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _BY_STATUS.get(error.status_code, problems.INTERNAL)
        allowed = tuple((k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items())
        return answer(Problem(kind, f"{kind.title}.", headers=allowed))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return answer(Problem(problems.MALFORMED, "The body is not JSON."))
        return answer(Problem(problems.INVALID_BODY, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"))

    async def away(_: Request, _error: Exception) -> Response:
        return answer(Problem(problems.UNAVAILABLE, "The database cannot be asked now.", retry_after_s=1))

    async def failed(_: Request, _error: Exception) -> Response:
        return answer(Problem(problems.INTERNAL, "The gateway failed; the log of the gateway says why."))

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Away, away)
    app.add_exception_handler(NotMigrated, away)
    app.add_exception_handler(Exception, failed)
