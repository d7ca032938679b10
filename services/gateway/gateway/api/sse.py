"""Server-sent events: the life of one purchase, and the sale as everybody may see it.

Streams are bounded in number, in time and in how far a listener may fall behind. An event is the whole state, so a
listener that missed some has missed nothing: `id` is the version, the same on every gateway, and a stream goes on
anywhere from the last one seen. The public feed carries counts only; nothing in it names a purchase or a buyer.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.api import views
from gateway.http import problems
from gateway.http.retry_after import overloaded
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.follower import Waiters
from gateway.read_side.lookup import Lookup
from gateway.read_side.postgres import Unavailable
from gateway.read_side.projection import Projection
from gateway.read_side.purchase_state import Answered, Purchase, may_change
from service.problem_details import Problem
from stampede_schemas.identifiers import ProductId

STREAMS_MAX = 5_000
STREAMS_OF_ONE_MAX = 10
STREAMS_RETRY_S = 3
STREAM_S_MAX = 600.0  # then the listener connects again, perhaps to a gateway with less to do
HEARTBEAT_S = 10.0  # shorter than what proxies call idle
BEHIND_S_MAX = 5.0
UNAVAILABLE_S = 1.0
FRAME_S_MIN = 0.1
FRAME_S_MAX = 1.0  # rates change while nothing is decided
RATE_OVER_S = 2.0
PRODUCTS_SHOWN_MAX = 200
EVERYBODY = "everybody"
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
_ENOUGH = (
    (b"ratelimit-policy", b'"streams";q=%d' % STREAMS_OF_ONE_MAX),
    (b"ratelimit", b'"streams";r=0;t=%d' % STREAMS_RETRY_S),
)
_BEGIN = b"retry: 1000\n\n"
_HEARTBEAT = b":\n\n"


class Streams:
    """The streams that are open. Each has a place from `take` until its response has ended."""

    def __init__(self, streams_max: int = STREAMS_MAX, behind_s_max: float = BEHIND_S_MAX) -> None:
        self._streams_max, self.behind_s_max = streams_max, behind_s_max
        self._of: Counter[str] = Counter()
        self._count = 0  # of all: summed up anew it would cost each connection more, the more there are
        self.running: set[asyncio.Timeout] = set()  # how long each may still run
        self._closed = False

    def acquire(self, owner: str) -> Problem | None:
        """A place for `owner` (a pseudonym, or a word for everybody), or why there is none."""
        half = (self._streams_max + 1) // 2  # watchers of the sale leave room for those who bought
        full = self._count >= self._streams_max or (owner == EVERYBODY and self._of[owner] >= half)
        if self._closed or full:
            return overloaded("Too many streams are open here; poll instead.", STREAMS_RETRY_S)
        if owner != EVERYBODY and self._of[owner] >= STREAMS_OF_ONE_MAX:
            detail = f"You have {STREAMS_OF_ONE_MAX} streams open; close one."
            return Problem(problems.RATE_LIMITED, detail, headers=_ENOUGH, retry_after_s=STREAMS_RETRY_S)
        self._of[owner] += 1
        self._count += 1
        return None

    def release(self, owner: str) -> None:
        """The place of `owner` is free again."""
        self._count -= 1
        self._of[owner] -= 1
        if not self._of[owner]:
            del self._of[owner]

    def close(self) -> None:
        """End every stream; listeners go to another gateway."""
        self._closed = True
        for until in self.running:
            if not until.expired():
                until.reschedule(0)


class EventStream(StreamingResponse):
    """A response of frames, in a place taken from `streams` for `owner`; it ends when its listener leaves."""

    def __init__(self, frames: AsyncGenerator[bytes, None], streams: Streams, owner: str) -> None:
        super().__init__(frames, headers=_HEADERS)
        self._frames, self._streams, self._owner = frames, streams, owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream, and give the place back."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.release(self._owner)

    async def stream_response(self, send: Send) -> None:
        """Send frames until they end or time is up.

        A listener that falls behind is left without the end of its response, and so hung up on.
        """
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": _BEGIN, "more_body": True})
        until = asyncio.timeout(STREAM_S_MAX)
        self._streams.running.add(until)
        try:
            async with until, contextlib.aclosing(self._frames) as frames:  # its `finally` runs now, not some day
                async for frame in frames:
                    async with asyncio.timeout(self._streams.behind_s_max):
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
        except TimeoutError:
            if not until.expired():
                return
        finally:
            self._streams.running.discard(until)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PurchaseFeed:
    """The lives of purchases. States seen here come from memory: a crowd of listeners reads no row."""

    def __init__(self, projection: Projection, waiters: Waiters, lookup: Lookup) -> None:
        self._projection, self._waiters, self._lookup = projection, waiters, lookup

    async def frames(self, purchase_id: str, seen: int) -> AsyncGenerator[bytes, None]:
        """The states of a purchase above version `seen`, until nothing can change any more."""
        while True:
            try:
                known = await self._next(purchase_id, seen)
            except Unavailable:
                yield _HEARTBEAT
                await asyncio.sleep(UNAVAILABLE_S)
                continue
            if known is None:
                return
            if known.version > seen:
                seen = known.version
                yield _frame(known.status, views.purchase(known), seen)
            else:
                yield _HEARTBEAT
            if not may_change(known):
                return

    async def _next(self, purchase_id: str, seen: int) -> Purchase | None:
        known = self._projection.purchase(purchase_id)
        if known is None or isinstance(known, Answered):
            return await self._lookup.change(purchase_id, seen, HEARTBEAT_S)
        if known.version <= seen:
            await self._waiters.changed(purchase_id, HEARTBEAT_S)
            known = self._projection.purchase(purchase_id)
        return known or await self._lookup.find(purchase_id)


class SaleFeed:
    """The sale, as frames that are made once for all listeners: what changed, or everything for who needs it."""

    def __init__(self, projection: Projection, clock: BrokerClock) -> None:
        self._projection, self._clock = projection, clock
        self._number = 0
        self._delta = b""
        self._whole: bytes | None = None  # of this number; made when the first listener needs it
        self._next = asyncio.Event()
        self._listeners = 0
        self._rates: dict[str, float] = {}
        self._counted: list[tuple[float, dict[str, int]]] = []  # when the latest frames were made, and the counts then

    async def run(self) -> None:
        """Make frames, at most ten a second, for as long as there are listeners."""
        while True:
            await asyncio.sleep(FRAME_S_MIN)
            if self._listeners:
                now, (made_at, _) = time.monotonic(), self._counted[-1]
                if self._projection.tally.touched or now - made_at >= FRAME_S_MAX:
                    self._make(now)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Everything, then what changes; everything again after a frame was missed."""
        if not self._listeners:  # nothing was made while nobody listened
            counts = dict(self._projection.tally.decided)
            self._whole, self._rates = None, dict.fromkeys(counts, 0.0)
            self._counted = [(time.monotonic(), counts)]
            self._projection.tally.touched.clear()
        self._listeners += 1
        try:
            seen = -1
            while True:
                if self._number == seen:
                    await self._next.wait()
                missed = self._number != seen + 1
                seen, frame = self._number, self._full() if missed or seen < 0 else self._delta
                yield frame
        finally:
            self._listeners -= 1

    def _make(self, now: float) -> None:
        tally = self._projection.tally
        changed = sorted(tally.touched)[:PRODUCTS_SHOWN_MAX]
        tally.touched.difference_update(changed)
        counts = dict(tally.decided)
        self._counted = [(at, then) for at, then in self._counted if now - at <= RATE_OVER_S] + [(now, counts)]
        since, then = self._counted[0]
        over = max(now - since, FRAME_S_MIN)
        self._rates = {kind: round((count - then[kind]) / over, 1) for kind, count in counts.items()}
        self._number += 1
        self._delta = _frame("changes", self._body(changed))
        self._whole = None
        self._next.set()
        self._next = asyncio.Event()

    def _full(self) -> bytes:
        if self._whole is None:
            self._whole = _frame("sale", self._body(sorted(self._projection.products)[:PRODUCTS_SHOWN_MAX]))
        return self._whole

    def _body(self, product_ids: list[ProductId]) -> bytes:
        return views.sale(self._projection, product_ids, self._rates, self._clock.shown_ms())


def last_event_id(text: str | None) -> int:
    """The version in a Last-Event-ID header; -1 (nothing seen) when there is none or it is none of ours."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else -1


def _frame(event: str, data: bytes, number: int | None = None) -> bytes:
    head = b"" if number is None else b"id: %d\n" % number
    return head + b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"
