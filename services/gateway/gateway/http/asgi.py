"""Bodies in and out of ASGI: read up to the limit, checked before an app sees them, sent whole."""

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http import problems, requests
from service.problem_details import Problem, ProblemError
from telemetry.traceparent import trace_id_of
from telemetry.tracing import new_traceparent

RouteHeaders = list[tuple[bytes, bytes]]


async def read_body(receive: Receive) -> bytes | Problem | None:
    """The whole body, at most BODY_BYTES_MAX; None when the client has left, or was too slow for the listener."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > requests.BODY_BYTES_MAX:
            return requests.too_large()
        if not message.get("more_body", False):
            return body


async def respond(send: Send, status: int, headers: RouteHeaders, body: bytes) -> None:
    """Send a whole response."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class BodyLimit:
    """Reads the bounded body of a request before the app sees it, so that no route can read past the limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body in hand, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        headers = requests.pick(scope["headers"])
        unknown = headers.get(b"content-length", b"0") == b"0"  # it is empty, or comes in chunks
        refused = requests.check_media(headers, empty=unknown)
        body = refused if refused is not None else await read_body(receive)
        if body is None:
            return
        if isinstance(body, bytes) and body:
            body = requests.check_media(headers) or requests.without_duplicates(body) or body
        if isinstance(body, Problem):
            trace_id = trace_id_of(new_traceparent(0.0))
            await respond(send, body.kind.status, body.response_headers(), body.body(trace_id))
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)


async def require_empty_body(request: Request) -> None:
    """For routes that need no body: an empty object `{}` counts as none. Raises ProblemError."""
    if b"".join((await request.body()).split()) not in (b"", b"{}"):
        raise ProblemError(Problem(problems.INVALID_BODY, "There is nothing to say in a body here; send none."))
