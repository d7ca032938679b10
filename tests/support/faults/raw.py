"""HTTP as raw bytes over a socket, for what no client library would send."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

HANG_S_MAX = 5.0
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A response, as it came."""

    status: int
    head: str
    body: bytes

    @property
    def problem(self) -> str:
        """The type of the problem document."""
        assert "content-type: application/problem+json" in self.head.lower(), (self.head, self.body)
        document = json.loads(self.body)
        assert {"type", "title", "status", "detail", "retryable", "trace_id"} <= document.keys()
        assert document["status"] == self.status
        assert b"Traceback" not in self.body
        return str(document["type"]).removeprefix("/problems/")

    @property
    def last(self) -> bool:
        """Whether the server says that it closes the connection."""
        return "connection: close" in self.head.lower()


class Talk:
    """One connection. Whatever is awaited must come within `wait_s`."""

    def __init__(self, port: int, wait_s: float = HANG_S_MAX) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=wait_s)
        self._received = b""

    def send(self, data: bytes, *, finish: bool = False) -> None:
        """Send bytes; the server may have closed before it took them all: that is what a limit is for."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)
        if finish:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def answer(self, *, head_only: bool = False) -> Answer | None:
        """The next response; None when the connection ended without one. A reset is an error."""
        while b"\r\n\r\n" not in self._received:
            if not self._more():
                assert not self._received, self._received
                return None
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status = int(head.split(maxsplit=2)[1])
        length = _LENGTH.search(head)
        if head_only or status in {204, 304} or not length:
            return Answer(status, head.decode("latin-1"), b"")
        wanted = int(length[1])
        while len(self._received) < wanted:
            assert self._more(), "the body was cut short"
        body, self._received = self._received[:wanted], self._received[wanted:]
        return Answer(status, head.decode("latin-1"), body)

    def answers(self) -> list[Answer]:
        """All responses until the server closes."""
        found = []
        while (answer := self.answer()) is not None:
            found.append(answer)
        return found

    def ended(self) -> bool:
        """Whether the server closes, and sends nothing more before."""
        return self.answer() is None

    def _more(self) -> bool:
        part = self.socket.recv(262_144)
        self._received += part
        return bool(part)


@contextlib.contextmanager
def talk(port: int, wait_s: float = HANG_S_MAX) -> Iterator[Talk]:
    """Open a connection, and close it."""
    one = Talk(port, wait_s)
    try:
        yield one
    finally:
        one.socket.close()


def ask(port: int, data: bytes, *, finish: bool = False) -> Answer:
    """Send bytes, read one response. The connection must not stay silent for five seconds."""
    began = time.monotonic()
    with talk(port) as connection:
        connection.send(data, finish=finish)
        answer = connection.answer(head_only=data.startswith(b"HEAD "))
    assert time.monotonic() - began < HANG_S_MAX
    assert answer is not None, "the connection was closed without an answer"
    return answer
