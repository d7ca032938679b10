"""Streams are bounded, and a listener that falls behind is left behind."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.api import sse
from gateway.api.sse import EventStream, SaleFeed, Streams
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.projection import Projection
from tests.support.builders.gateway import listed, reserved


async def endless() -> AsyncGenerator[bytes, None]:
    """Frames without end, as fast as they are taken."""
    while True:
        yield b"data: {}\n\n"
        await asyncio.sleep(0)


async def never() -> dict[str, Any]:
    """A listener that stays connected and says nothing."""
    await asyncio.Event().wait()
    raise AssertionError


class Listener:
    """Takes `frames` messages, then no more."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.got: list[Any] = []
        self._came = asyncio.Event()

    async def has(self, count: int) -> None:
        """Return when it has got so many."""
        while len(self.got) < count:
            self._came.clear()
            await self._came.wait()

    async def send(self, message: Any) -> None:
        """Take a message, or never return."""
        if len(self.got) >= self.takes:
            await asyncio.Event().wait()
        self.got.append(message)
        self._came.set()


async def test_a_listener_that_stops_reading_is_left_without_an_end() -> None:
    """Its response stays unfinished, so the server hangs up; its place is free again."""
    streams, deaf = Streams(streams_max=1, behind_s_max=0.05), Listener(takes=5)
    assert streams.acquire(sse.EVERYBODY) is None
    async with asyncio.timeout(5):
        await EventStream(endless(), streams, sse.EVERYBODY)({"type": "http"}, never, deaf.send)
    assert len(deaf.got) == 5
    assert all(message.get("more_body", True) for message in deaf.got)
    assert streams.acquire(sse.EVERYBODY) is None


async def test_streams_are_so_many_and_closing_ends_them_all() -> None:
    """Beyond the bound: overloaded. Closing finishes each response, and admits nobody any more."""
    streams, ear = Streams(streams_max=1), Listener(takes=1_000_000)
    assert streams.acquire("ann") is None
    refused = streams.acquire("bob")
    assert refused is not None
    assert refused.kind.status == 503
    again = [streams.acquire("bob") for _ in range(200)]
    assert {one.retry_after_s for one in again if one is not None} == set(range(3, 10)), (
        "they must not come back as one"
    )
    serving = asyncio.create_task(EventStream(endless(), streams, "ann")({"type": "http"}, never, ear.send))
    async with asyncio.timeout(5):
        await ear.has(10)
    streams.close()
    async with asyncio.timeout(5):
        await serving
    assert ear.got[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert streams.acquire("ann") is not None


def test_the_crowd_that_only_looks_leaves_room_for_buyers() -> None:
    """Half of the places at most are for everybody."""
    streams = Streams(streams_max=4)
    assert [streams.acquire(sse.EVERYBODY) is None for _ in range(3)] == [True, True, False]
    assert [streams.acquire(buyer) is None for buyer in ("ann", "bob", "eve")] == [True, True, False]


async def test_who_missed_a_frame_gets_everything_again() -> None:
    """Changes would not be enough; and whoever keeps up gets changes only."""
    projection = Projection()
    projection.fold(0, 0, [listed(9)])
    feed = SaleFeed(projection, BrokerClock())
    keen, slow = feed.frames(), feed.frames()
    running = asyncio.create_task(feed.run())
    try:
        assert [b"event: sale" in await anext(each) for each in (keen, slow)] == [True, True]
        for offset in range(1, 4):
            projection.fold(0, offset, [reserved(f"p{offset}", left=9 - offset, number=offset)])
            assert b"event: changes" in await anext(keen)
        assert b'"available":6' in (whole := await anext(slow))
        assert b"event: sale" in whole
        assert whole is not await anext(keen)
    finally:
        running.cancel()


@pytest.mark.parametrize(("text", "seen"), [(None, -1), ("3", 3), ("", -1), ("-1", -1), ("x", -1), ("9" * 40, -1)])
def test_what_was_seen_last_is_a_version_or_nothing(text: str | None, seen: int) -> None:
    """A header that is none of ours begins at the beginning."""
    assert sse.last_event_id(text) == seen
