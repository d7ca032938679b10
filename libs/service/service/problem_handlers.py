"""Problem documents as answers of FastAPI, which the services with HTTP bring."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from service.problem_details import Kind, Problem, ProblemError
from telemetry.traceparent import trace_id_of
from telemetry.tracing import new_traceparent


def answer(problem: Problem) -> Response:
    """A problem as a response of FastAPI."""
    response = Response(problem.body(trace_id_of(new_traceparent(0.0))), problem.kind.status)
    response.raw_headers = [*problem.response_headers(), (b"content-length", b"%d" % len(response.body))]
    return response


def add_problem_handlers(
    app: FastAPI,
    kinds: Mapping[int, Kind],
    failed: Problem,
    fields: Mapping[tuple[str, ...], tuple[Kind, str]] | None = None,
) -> None:
    """Make every error of this app a problem document: of the kind of its status, else `failed`.

    A request that fails validation is of the kind of 422, or of the kind that `fields` has for where it fails, with the
    beginning of its detail.
    """

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return answer(error.problem)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if (kind := kinds.get(error.status_code)) is None:
            return answer(failed)
        headers = error.headers or {}
        if error.status_code == 405:
            headers = {"allow": ", ".join(_allowed(app, request))}
        told = tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
        return answer(Problem(kind, f"{kind.title}.", headers=told))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = tuple(str(part) for part in first["loc"])
        kind, detail = (fields or {}).get(where, (kinds[422], ".".join(where)))
        return answer(Problem(kind, f"{detail}: {first['msg']}"))

    async def internal(_: Request, _error: Exception) -> Response:
        return answer(failed)

    app.add_exception_handler(ProblemError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, internal)


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """What can be done with this path: the router tells of its first route alone."""
    matching = [
        route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE
    ]
    return sorted({method for route in matching for method in route.methods or ()})
