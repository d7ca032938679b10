"""Packs a table in a forked child, so that deciding goes on: the child holds the table as it was at that moment.

The child only reads memory and writes to a pipe; it touches no client, no lock and no file of its parent.
"""

import asyncio
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator

NICE = 19
# Beside each second of work the child rests five: a snapshot is never urgent, and deciding shares cores, memory
# bandwidth and the broker with it. 1.5 million things then take some 7 s instead of 2, and the p99 of decisions stays.
REST_PER_WORK = 5.0
PIECE_S_MAX = 30.0
_LENGTH = struct.Struct("!I")
_END = _LENGTH.pack(0)


class PackingFailed(Exception):
    """The child did not come to its end."""


def forked(pack: Callable[[], Iterator[bytes]]) -> AsyncIterator[bytes]:
    """Fork now, and give what `pack()` yields in the child. Values are not empty.

    Raises:
        PackingFailed: while iterating, when there is no child, or it died or stood still for 30 s.
    """
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no memory or no process left: then the pipe ends at once
        child = -1
    if child == 0:
        _child(pack, reading, writing)
    os.close(writing)
    return _values(reading, child)


def _child(pack: Callable[[], Iterator[bytes]], reading: int, writing: int) -> None:
    status = 1
    try:
        os.close(reading)
        os.nice(NICE)
        with open(writing, "wb", buffering=1 << 20) as pipe:
            began = time.process_time()
            for value in pack():
                pipe.write(_LENGTH.pack(len(value)))
                pipe.write(value)
                pipe.flush()
                time.sleep((time.process_time() - began) * REST_PER_WORK)
                began = time.process_time()
            pipe.write(_END)
        status = 0
    finally:
        os._exit(status)  # none of the parent's clean-up is the child's


async def _values(reading: int, child: int) -> AsyncIterator[bytes]:
    stream = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb")
    )
    try:
        while True:
            async with asyncio.timeout(PIECE_S_MAX):
                (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
                value = await stream.readexactly(length)
            if not length:
                return
            yield value
    except (TimeoutError, asyncio.IncompleteReadError) as error:
        raise PackingFailed(f"its packing ended early ({error!r})") from error
    finally:
        transport.close()
        if child > 0:
            os.kill(child, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, child, 0)
