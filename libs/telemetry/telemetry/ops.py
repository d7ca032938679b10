"""The small HTTP listener every process has for its operators: health, metrics, and a few read-only routes.

Plain asyncio, so that inventory needs no web framework. It answers GET only, one request a connection, and
outlives garbage, oversized and unfinished requests. It must never wait for a dependency: callers keep what
they know and tell it here.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import msgspec
from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from telemetry import names
from telemetry.tracing import Tracing

HEADER_BYTES_MAX = 16_384
REQUEST_SECONDS_MAX = 5.0
CONNECTIONS_MAX = 64

# What is checked -> True when well; False or a sentence saying what is wrong otherwise.
Checks = Mapping[str, bool | str]
# Takes the query, returns what becomes the JSON body (bytes: JSON already). LookupError is a 404, ValueError a 400.
Route = Callable[[Mapping[str, str]], object | Awaitable[object]]
_log = logging.getLogger(__name__)
_JSON = "application/json"


def build_registry(service: str, instance: str, tracing: Tracing | None = None) -> CollectorRegistry:
    """A registry of this process's own (two apps in one process do not meet), with process metrics in it.

    Given the process's tracing, it tells the number of dropped spans too.
    """
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    Gauge(names.BUILD_INFO, "What runs here", ["service", "instance"], registry=registry).labels(service, instance).set(
        1
    )
    if tracing:
        dropped = Gauge(names.SPANS_DROPPED, "Spans lost to a full queue or disk", registry=registry)
        dropped.set_function(lambda: tracing.dropped)
    return registry


@dataclass(slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes = b""
    content_type: str = _JSON


class Ops:
    """A running ops listener; `port` is the one it got when 0 was asked for."""

    def __init__(
        self,
        live: Callable[[], Checks],
        ready: Callable[[], Checks],
        routes: Mapping[str, Route],
        registry: CollectorRegistry | None,
    ) -> None:
        self._live, self._ready, self._routes, self._registry = live, ready, routes, registry
        self._started = False
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError when the port is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=HEADER_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop open connections."""
        if self._server:
            self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._server:
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if len(self._open) <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_SECONDS_MAX):
                    await self._respond(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # the caller left or dawdled: there is nobody to answer
        finally:
            self._open.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = "GET"
        try:
            line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]
            method, target, _version = line.decode("ascii").split(" ")
            known = method in ("GET", "HEAD")
            answer = await self._answer(target) if known else _Answer(HTTPStatus.METHOD_NOT_ALLOWED)
        except asyncio.LimitOverrunError:
            answer = _Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except ValueError:
            answer = _Answer(HTTPStatus.BAD_REQUEST)
        head = (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if method == "HEAD" else answer.body))
        await writer.drain()

    async def _answer(self, target: str) -> _Answer:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if url.path in ("/livez", "/readyz", "/startupz"):
            answer = _health(self._live if url.path == "/livez" else self._ready, verbose="verbose" in query)
            # Started once means started: later trouble is readiness's to tell, not a reason to restart.
            self._started = self._started or (url.path != "/livez" and answer.status is HTTPStatus.OK)
            return _Answer(HTTPStatus.OK, answer.body) if url.path == "/startupz" and self._started else answer
        if url.path == "/metrics" and self._registry:
            return _Answer(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST)
        try:
            result = self._routes[url.path](query)
            value = await result if inspect.isawaitable(result) else result
            return _Answer(HTTPStatus.OK, value if isinstance(value, bytes) else msgspec.json.encode(value))
        except LookupError:
            return _Answer(HTTPStatus.NOT_FOUND)
        except ValueError as error:
            return _Answer(HTTPStatus.BAD_REQUEST, msgspec.json.encode({"detail": str(error)}))
        except Exception:
            _log.exception("the ops listener could not answer %s", url.path)
            return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR)


def _health(check: Callable[[], Checks], *, verbose: bool) -> _Answer:
    try:
        checks = dict(check())
    except Exception as error:
        _log.exception("a health check raised")
        checks = {"health check": f"raised {type(error).__name__}"}
    failed = {name: state for name, state in checks.items() if state is not True}
    status = HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK
    told = checks if verbose else failed
    body: dict[str, object] = {"status": "failed" if failed else "ok"} | ({"checks": told} if told else {})
    return _Answer(status, msgspec.json.encode(body))


async def serve_ops(
    host: str,
    port: int,
    *,
    live: Callable[[], Checks],
    ready: Callable[[], Checks],
    routes: Mapping[str, Route] | None = None,
    registry: CollectorRegistry | None = None,
) -> Ops:
    """Serve /livez, /readyz(?verbose), /startupz, /metrics and `routes` (path -> Route) until `close()`.

    A check that raises counts as failed. Raises OSError when the port is taken.
    """
    ops = Ops(live, ready, routes or {}, registry)
    await ops.start(host, port)
    return ops
