"""Requests that wait for something to change: woken by key, and bounded."""

import asyncio

WATCHERS_MAX = 50_000
UNWATCHED_S = 0.25


class Waiters:
    """Waits for a key to change. Bounded: beyond the limit a waiter is not woken, but looks again by itself."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._count = 0

    async def changed(self, key: str, seconds: float) -> bool:
        """True when `key` changed within `seconds`."""
        if seconds <= 0 or self._count >= WATCHERS_MAX:
            await asyncio.sleep(min(max(seconds, 0), UNWATCHED_S))  # never at once: callers ask in a loop
            return False
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(future)
        self._count += 1
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._count -= 1
            if (others := self._waiting.get(key)) is not None:
                others.discard(future)
                if not others:
                    del self._waiting[key]
        return True

    def wake(self, keys: list[str]) -> None:
        """These keys changed."""
        for key in keys:
            for future in self._waiting.pop(key, ()):
                if not future.done():
                    future.set_result(None)
