"""One HTTP listener and what it endures: the limits that the HTTP server has none of, and a graceful end.

Every connection is bounded in what it may send, how long it may take, how much it may leave unread and how far it may
run ahead. One sweep a second checks all connections: a timer for each would cost more than the rest. Must not know
what is served.
"""

import asyncio
import contextlib
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.http import problems
from gateway.http.requests import BODY_BYTES_MAX, too_large
from gateway.http.retry_after import overloaded
from service.problem_details import Problem, ProblemError
from telemetry.traceparent import trace_id_of
from telemetry.tracing import new_traceparent

URL_BYTES_MAX = 8_192
HEADER_BYTES_MAX = 16_384
HEADERS_MAX = 100
WIRE_BYTES_MAX = 65_536  # of one request, framing included: a chunked body of single bytes is six times its size
IGNORED_BYTES_MAX = 1_048_576  # read and dropped after a refusal, so that the answer is not lost to a reset
PIPELINED_MAX = 16
CONNECTIONS_MAX = 20_000
BACKLOG = 4_096  # connections that the kernel lets in before we do
FILES_RESERVED = 256  # of what the process may open: Kafka, Postgres, Redis, spans, the other listeners
REQUEST_S_MAX = 10.0  # to complete a request; also to take an answer, and between two requests
DRAIN_S_MAX = 10
SWEEPS = 10  # in REQUEST_S_MAX
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

_UNREADABLE = Problem(problems.MALFORMED, "This is not a request of HTTP/1.1.", close=True)
_CUT_SHORT = Problem(problems.MALFORMED, "The request ended before it was complete.", close=True)
_LATE = Problem(problems.REQUEST_TIMEOUT, "A request must be complete within 10 s.", close=True)
_LONG_URL = Problem(problems.URL_TOO_LONG, f"A URL has at most {URL_BYTES_MAX} bytes.", close=True)
_BIG_HEAD = Problem(
    problems.HEADERS_TOO_LARGE,
    f"A request has at most {HEADERS_MAX} headers and {HEADER_BYTES_MAX} bytes of them.",
    close=True,
)


@dataclass(slots=True)
class Bounds:
    """Limits and state of all connections of a listener. `draining`: every answer is the last of its connection."""

    request_s: float
    connections: int
    draining: bool = False


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's connection with limits. It leans on uvicorn's insides; `test_gateway_server` pins them."""

    cycle: Any  # the newest request and its answer; uvicorn says so only of the time after the first

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: Bounds,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = bounds
        self._active: Any = None  # the request that is being answered; uvicorn keeps the newest, and a queue
        self._in_head = self._reading = self._over = self._lingering = False
        self._read = self._wire = self._body = 0  # bytes: of the latest read, of this request as sent, of its body
        self._since = 0.0  # the present request began, or the connection fell idle
        self._unread_since: float | None = None  # the client has not taken its answers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse one too many."""
        super().connection_made(transport)
        self._since = time.monotonic()
        if len(self.connections) > self._bounds.connections:
            self._refuse(overloaded("Too many connections are open.", close=True))
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless the conversation is over."""
        self._read = len(data)
        self._wire += self._read
        if self._over:
            if self._wire > IGNORED_BYTES_MAX:
                self.flow.pause_reading() if self._due else self._cut()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._last()  # nothing behind it can be read
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.problem if isinstance(cause, ProblemError) else _UNREADABLE)
        else:
            if self._reading and (refused := self._too_much()) is not None:
                self._refuse(refused)

    def _too_much(self) -> Problem | None:
        """Why a request that did not come in one piece is not waited for any longer."""
        if not self._in_head:
            announced = next((int(value) for name, value in self.scope["headers"] if name == b"content-length"), 0)
            return too_large() if announced > BODY_BYTES_MAX or self._wire > WIRE_BYTES_MAX else None
        if len(self.url) > URL_BYTES_MAX:
            return _LONG_URL
        return _BIG_HEAD if self._wire > WIRE_BYTES_MAX or self._header_bytes() > HEADER_BYTES_MAX else None

    def _header_bytes(self) -> int:
        return sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = self._reading = True
        self._wire, self._body = self._read, 0
        self._since = time.monotonic()

    def on_headers_complete(self) -> None:
        """Let the app have it, if its head is within the limits."""
        url = self.url
        if len(url) > URL_BYTES_MAX:
            raise ProblemError(_LONG_URL)
        if len(self.headers) > HEADERS_MAX or (
            self._wire > HEADER_BYTES_MAX and self._header_bytes() > HEADER_BYTES_MAX
        ):
            raise ProblemError(_BIG_HEAD)
        if url[:1] != b"/" or (b"%" in url and _BAD_ESCAPE.search(url)) or len(self.pipeline) >= PIPELINED_MAX:
            raise ProblemError(_UNREADABLE)
        super().on_headers_complete()
        self.headers = []  # what comes now are trailers: no proxy has checked them, so they must not count
        self._in_head = False
        if not self.pipeline:
            self._active = self.cycle
        if self._bounds.draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body += len(body)
        if self._body > BODY_BYTES_MAX:
            raise ProblemError(too_large())
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        super().on_message_complete()
        self._reading = False
        if self.cycle.response_complete:  # it was answered early: the connection falls idle only now
            self._since = time.monotonic()

    def on_response_complete(self) -> None:
        """An answer is complete: the next request, or idleness, which needs no timer of its own."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._active, app = self.pipeline.pop()
            self._start_asgi_task(self._active, app)
        elif not self._reading:
            self._since = time.monotonic()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; its requests are answered all the same."""
        if self._reading and not self._over:
            self._refuse(_CUT_SHORT)
        elif not self._over:
            self._last()
        return self._due and not self._active.response_started  # who leaves a stream has left

    def sweep(self, now: float) -> None:
        """Close what takes too long: to send, to read, or between two requests."""
        late = now - self._bounds.request_s * (1 - 1 / SWEEPS)  # the next sweep would be past the limit
        soon = now - self._bounds.request_s / SWEEPS
        idle = soon if self._bounds.draining else late
        if self.transport.get_write_buffer_size() == 0:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif self._unread_since < late:
            self._cut()
            return
        if self._lingering:
            if self._since < soon:
                self.transport.close()
        elif self._reading:
            if self._since < late and not self._over:
                self._refuse(_LATE)
        elif (self.cycle is None or self.cycle.response_complete) and self._since < idle:
            self._linger()

    def shutdown(self) -> None:
        """End gracefully; who has just come may still ask, and is swept out otherwise."""
        if self.cycle is not None:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse, in our own words."""
        del msg
        self._refuse(_UNREADABLE)

    def _refuse(self, problem: Problem) -> None:
        """Answer the request that is being read with a problem, once those before it are answered, and close."""
        broken = None
        if self._reading and not self._in_head:  # the app has it already
            broken = self.cycle
            broken.disconnected, broken.waiting_for_100_continue = True, False
            broken.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
        if self._last():
            return
        if broken is not None and broken.response_started:
            self.transport.close()
            return
        body = problem.body(trace_id_of(new_traceparent(0.0)))
        lines = [
            *self.server_state.default_headers,
            *problem.response_headers(),
            (b"content-length", b"%d" % len(body)),
        ]
        head = b"".join([b"%b: %b\r\n" % line for line in lines])
        self.transport.write(STATUS_LINE[problem.kind.status] + head + b"\r\n" + body)
        self._linger()

    def _last(self) -> bool:
        """Read no further request, and close after the last answer that is due; whether one is."""
        self._over = True
        self._wire = 0
        due = self._due
        if due:
            (self.pipeline[0][0] if self.pipeline else self._active).keep_alive = False
        return due

    def _cut(self) -> None:
        """End it with a reset: the kernel would keep for minutes what the client does not take."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    @property
    def _due(self) -> bool:
        """Whether an answer is still to come."""
        active = self._active
        return active is not None and not (active.response_complete or active.disconnected)

    def _linger(self) -> None:
        """Say that nothing more will come, and give the client until the next sweep to read what did."""
        self._over = self._lingering = True
        self._since = time.monotonic()
        if not self.transport.is_closing():
            self.transport.write_eof()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the gateway stops its servers in its own order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Listener:
    """An app on a socket. `serve` runs until `close`; before that, `drain` for a while."""

    def __init__(self, app: ASGIApp, host: str, port: int, request_s: float = REQUEST_S_MAX) -> None:
        """Take the port (0: a free one). Raises OSError when it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._bounds = Bounds(request_s, min(CONNECTIONS_MAX, files - FILES_RESERVED))
        self._server = _Server(
            uvicorn.Config(
                app,
                http=partial(BoundedProtocol, bounds=self._bounds),  # type: ignore[arg-type]  # a factory is enough
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=DRAIN_S_MAX,
            )
        )

    @property
    def connections(self) -> set[BoundedProtocol]:
        """Those that are open."""
        return cast("set[BoundedProtocol]", self._server.server_state.connections)

    async def serve(self) -> None:
        """Answer until closed, then until every request is answered."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            await self._server.serve([self._socket])
        finally:
            sweeping.cancel()

    def drain(self) -> None:
        """From now on every answer is the last of its connection, and says so."""
        self._bounds.draining = True
        for connection in self.connections:
            if connection.cycle is not None:
                connection.cycle.keep_alive = False

    def close(self) -> None:
        """Take no more connections; `serve` returns when all answers are out.

        The kernel resets a connection that it has let in and that was not taken yet.
        """
        self._server.should_exit = True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._bounds.request_s / SWEEPS)
            now = time.monotonic()
            for connection in tuple(self.connections):
                connection.sweep(now)
