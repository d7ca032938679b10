"""A real listener in a thread of its own, with a small app behind it and short limits."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

import uvloop
from starlette.types import Receive, Scope, Send

from gateway.http.server import Listener

REQUEST_S = 0.5


class Told:
    """The app: answers with the path and the body it was given; remembers the heads."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, list[tuple[bytes, bytes]]]] = []
        self.gone = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/early` answers before it reads, `/slow` takes a while, `/large` has a large answer, `/stream` no end."""
        self.heads.append((scope["path"], list(scope["headers"])))
        body = b""
        while scope["path"] != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            body += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] == "/slow":
            await asyncio.sleep(0.3)
        answer = b"x" * 4_000_000 if scope["path"] == "/large" else scope["path"].encode() + b" " + body
        headers = [] if scope["path"] == "/stream" else [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer, "more_body": scope["path"] == "/stream"})
        while scope["path"] == "/stream" and not self.gone.is_set():
            if (await receive())["type"] == "http.disconnect":
                self.gone.set()


@contextlib.contextmanager
def listening(request_s: float = REQUEST_S) -> Iterator[tuple[Listener, Told, Callable[[Callable[[], None]], object]]]:
    """A listener in a thread of its own; the third runs something in its loop."""
    app, started = Told(), threading.Event()
    parts: dict[str, object] = {}

    async def serve() -> None:
        listener = parts["listener"] = Listener(app, "127.0.0.1", 0, request_s)
        parts["loop"] = asyncio.get_running_loop()
        asyncio.get_running_loop().call_later(0.05, started.set)
        await listener.serve()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    assert started.wait(5)
    listener, loop = parts["listener"], parts["loop"]
    assert isinstance(listener, Listener)
    assert isinstance(loop, asyncio.AbstractEventLoop)
    try:
        yield listener, app, loop.call_soon_threadsafe
    finally:
        with contextlib.suppress(RuntimeError):  # the test has closed it
            loop.call_soon_threadsafe(listener.close)
        thread.join(20)
        assert not thread.is_alive()
