"""A TCP proxy on loopback that a test bends: cut, refuse, stall, slow down, or cut exactly where some bytes pass.

It runs in a thread of its own; its methods may be called from any thread, and have taken effect when they return.
Nothing here knows the protocol that passes.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

from devstack.ports import anywhere, is_free

HOST = "127.0.0.1"
PIECE_BYTES_MAX = 64 * 1024
PATTERN_BYTES_MAX = 256
CALL_S_MAX = 10.0
LINGER_NOT = struct.pack("ii", 1, 0)  # close() then sends RST and drops what was not sent
T = TypeVar("T")

# A transaction's end as asyncpg sends it (a simple query), and the server's CommandComplete that answers it.
POSTGRES_COMMIT = b"COMMIT;\x00"
POSTGRES_COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"


class Way(Enum):
    """Where bytes go."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Trap:
    """Cuts the connection on which `pattern` (at most 256 bytes) passes in one direction; once, then never again.

    It lets `lets_pass` of them through first. `delivered` tells whether the pattern still reaches the other side, which
    then hears the end of the connection after it; the side that sent it is reset and hears nothing more.
    """

    def __init__(self, pattern: bytes, way: Way, *, delivered: bool, lets_pass: int = 0) -> None:
        assert 0 < len(pattern) <= PATTERN_BYTES_MAX
        self.pattern, self.way, self.delivered = pattern, way, delivered
        self._left = lets_pass
        self._closed = False
        self._cut = threading.Event()

    @property
    def sprung(self) -> bool:
        """Whether it has cut a connection."""
        return self._cut.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it has cut a connection; whether it did."""
        return self._cut.wait(seconds)

    def has_cut(self) -> None:
        """Tell those who wait."""
        self._cut.set()

    def springs(self, before: bytes, piece: bytes) -> int | None:
        """How many bytes of the piece are passed on before the cut, or None: no cut. `before` went before it."""
        if self._closed:
            return None
        before = before[-(len(self.pattern) - 1) :] if len(self.pattern) > 1 else b""
        seen = before + piece
        at = seen.find(self.pattern)
        while at >= 0 and self._left > 0:
            self._left -= 1
            at = seen.find(self.pattern, at + 1)
        if at < 0:
            return None
        self._closed = True
        return max(0, at + (len(self.pattern) if self.delivered else 0) - len(before))


class _Link:
    """One connection of a client, and ours to the server for it."""

    def __init__(self, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> None:
        self.sides = {Way.TO_CLIENT: to_client, Way.TO_SERVER: to_server}
        self.pumps: list[asyncio.Task[None]] = []

    async def cut(self) -> None:
        """Reset both sides; what was on its way is lost."""
        for side in self.sides.values():
            _reset(side)
        me = asyncio.current_task()
        pumps = [pump for pump in self.pumps if pump is not me]
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


class Proxy:
    """Listens on `port` of loopback and passes every connection on to `server_port`, until `close`."""

    def __init__(self, server_port: int, port: int | None = None) -> None:
        self.server_port = server_port
        self.port = next(one for one in anywhere() if is_free(one)) if port is None else port
        self._links: set[_Link] = set()
        self._traps: list[Trap] = []
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._latency_s, self._bytes_per_s = 0.0, 0.0
        self._passed = dict.fromkeys(Way, 0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}", daemon=True)
        self._thread.start()
        self.listen()

    @property
    def links(self) -> int:
        """How many connections are open."""
        return len(self._links)

    @property
    def passed(self) -> dict[Way, int]:
        """Bytes that were passed on so far."""
        return dict(self._passed)

    def cut(self) -> int:
        """Reset every open connection; new ones are taken. How many were cut."""
        return self._do(self._cut())

    def refuse(self) -> int:
        """Reset every open connection, and refuse new ones until `listen` or `heal`. How many were cut."""
        return self._do(self._refuse())

    def listen(self) -> None:
        """Take connections (again)."""
        self._do(self._listen())

    def stall(self) -> None:
        """Take connections and pass nothing, either way, until `flow` or `heal`: what was sent then comes late."""
        self._do(self._set(flowing=False))

    def slow(self, *, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Each piece (64 KiB at most) waits so long and takes its time by the rate (0: no limit), until `flow`."""
        self._do(self._set(latency_s=latency_s, bytes_per_s=bytes_per_s))

    def flow(self) -> None:
        """Undo `stall` and `slow`."""
        self._do(self._set())

    def trap(self, pattern: bytes, way: Way, *, delivered: bool, lets_pass: int = 0) -> Trap:
        """Set a trap for what passes from now on: see Trap. It is armed when this returns."""
        trap = Trap(pattern, way, delivered=delivered, lets_pass=lets_pass)
        self._do(self._arm(trap))
        return trap

    def heal(self) -> None:
        """As in the beginning: listening, flowing, without traps. Open connections stay."""
        self._do(self._heal())

    def close(self) -> None:
        """Cut everything and end."""
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S_MAX)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S_MAX)

    # ---- in the loop of the thread

    async def _listen(self) -> None:
        if self._server is None:
            limit = PIECE_BYTES_MAX
            self._server = await asyncio.start_server(self._serve, HOST, self.port, limit=limit, backlog=512)

    async def _refuse(self) -> int:
        if self._server is not None:
            self._server.close()
            self._server = None
        return await self._cut()

    async def _cut(self) -> int:
        links = list(self._links)
        await asyncio.gather(*(link.cut() for link in links))
        return len(links)

    async def _set(self, *, flowing: bool = True, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self._latency_s, self._bytes_per_s = latency_s, bytes_per_s
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _arm(self, trap: Trap) -> None:
        self._traps.append(trap)

    async def _heal(self) -> None:
        self._traps.clear()
        await self._set()
        await self._listen()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(HOST, self.server_port, limit=PIECE_BYTES_MAX)
        except OSError:
            _reset(to_client)
            return
        link = _Link(to_client, to_server)
        link.pumps = [
            asyncio.create_task(self._pump(link, from_client, Way.TO_SERVER)),
            asyncio.create_task(self._pump(link, from_server, Way.TO_CLIENT)),
        ]
        self._links.add(link)
        try:
            await asyncio.gather(*link.pumps, return_exceptions=True)
        finally:
            self._links.discard(link)
            to_client.close()
            to_server.close()

    async def _pump(self, link: _Link, source: asyncio.StreamReader, way: Way) -> None:
        """Pass one direction on until it ends."""
        side, before = link.sides[way], b""
        try:
            while piece := await source.read(PIECE_BYTES_MAX):
                if self._latency_s or self._bytes_per_s:
                    await asyncio.sleep(self._latency_s + len(piece) / (self._bytes_per_s or float("inf")))
                await self._flowing.wait()
                if side.is_closing():
                    continue  # nobody hears it any more
                for trap in self._traps:
                    if trap.way is way and (passing := trap.springs(before, piece)) is not None:
                        await self._spring(link, trap, piece[:passing])
                        return
                self._send(side, way, piece)
                before = (before + piece)[-PATTERN_BYTES_MAX:]
                await side.drain()
            if not side.is_closing():
                side.write_eof()
        except OSError:
            await link.cut()

    async def _spring(self, link: _Link, trap: Trap, rest: bytes) -> None:
        side = link.sides[trap.way]
        self._send(side, trap.way, rest)
        if trap.delivered:
            _reset(next(other for other in link.sides.values() if other is not side))
            side.write_eof()
        else:
            await link.cut()
        trap.has_cut()

    def _send(self, side: asyncio.StreamWriter, way: Way, piece: bytes) -> None:
        side.write(piece)
        self._passed[way] += len(piece)


def _reset(side: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    side.transport.abort()


@contextmanager
def proxy(server_port: int, port: int | None = None) -> Iterator[Proxy]:
    """A proxy to a server on loopback, gone at the end."""
    made = Proxy(server_port, port)
    try:
        yield made
    finally:
        made.close()
