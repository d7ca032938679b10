"""Load shedding: reads of a status are given up first when more is asked than can be done, purchases never here.

Purchases are bounded where they wait for the log. Operators and health are on listeners or paths that nothing is shed
on. Must not do anything else: every request that is only a look passes here.
"""

import asyncio
import time

from prometheus_client import Counter, Gauge
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.asgi import respond
from gateway.http.retry_after import overloaded
from telemetry.traceparent import trace_id_of
from telemetry.tracing import new_traceparent

READS_MAX = 5_000  # at once, those that wait for a change included
LAG_S_MAX = 0.25
LOOK_S = 0.1
WEIGHT = 0.2  # of the latest look: one stall of a second is no overload
API = "/v1/"
STREAM = "/events"  # streams are bounded where they are made


class EventLoopLag:
    """How late the event loop is, in seconds, on average over the last second or so."""

    def __init__(self, gauge: Gauge) -> None:
        self.seconds = 0.0
        gauge.set_function(lambda: self.seconds)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(LOOK_S)
            late = time.monotonic() - began - LOOK_S
            self.seconds += WEIGHT * (late - self.seconds)


class StatusReads:
    """Lets reads of the API through to `app` while there is room for them."""

    def __init__(self, app: ASGIApp, lag: EventLoopLag, shed: Counter, reads_max: int) -> None:
        self._app, self._lag, self._shed, self._reads_max = app, lag, shed, reads_max
        self._reads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or answer 503 with a time to come back that differs from one to the next."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        counts = not scope["path"].endswith(STREAM)
        if (counts and self._reads >= self._reads_max) or self._lag.seconds > LAG_S_MAX:
            problem = overloaded()
            self._shed.inc()
            body = problem.body(trace_id_of(new_traceparent(0.0)))
            await respond(send, problem.kind.status, problem.response_headers(), body)
            return
        self._reads += counts
        try:
            await self._app(scope, receive, send)
        finally:
            self._reads -= counts
