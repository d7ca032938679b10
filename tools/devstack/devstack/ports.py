"""Which port each listener gets: configured, else the one it had before, else a free one.

The choice is pure; `is_free` asks the kernel. Free ports are taken below the range from which outgoing connections
get theirs, so that a component which is being restarted finds its port still free.
"""

import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from devstack.failure import StackError

FIRST_PORT, LAST_PORT = 20_000, 29_999
BLOCK = 100


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Blocks:
    """Candidates that no other process is offered meanwhile, whether a server listens there yet or not.

    A process has blocks of ports to itself. It claims one by holding the UDP port of the block's first number: the
    kernel gives that to one process, and takes it back when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._claims: dict[int, socket.socket] = {}  # by the first port of a block
        self._ports = self._offer()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._ports)

    def _offer(self) -> Iterator[int]:
        for first in random.sample(blocks := range(FIRST_PORT, LAST_PORT, BLOCK), len(blocks)):
            claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                claim.bind(("127.0.0.1", first))
            except OSError:
                claim.close()
                continue
            self._claims[first] = claim
            yield from range(first + 1, first + BLOCK)
        while self._claims:
            for first in self._claims:
                yield from range(first + 1, first + BLOCK)


_blocks = Blocks()


def anywhere() -> Iterator[int]:
    """Candidates for this process, the next ones at each call."""
    return islice(_blocks, LAST_PORT - FIRST_PORT)


@dataclass(slots=True)
class Ports:
    """The ports of one run: `remembered` from the last, `configured` by the person, `chosen` so far."""

    remembered: Mapping[str, int]
    configured: Mapping[str, int]
    free: Callable[[int], bool] = is_free
    candidates: Callable[[], Iterator[int]] = anywhere
    chosen: dict[str, int] = field(default_factory=dict)

    def take(self, name: str) -> int:
        """The port of listener `name`, the same at every call; raises StackError if a configured one is busy."""
        if name not in self.chosen:
            self.chosen[name] = self._choose(name)
        return self.chosen[name]

    def _choose(self, name: str) -> int:
        if (wanted := self.configured.get(name)) is not None:
            if not self.free(wanted):
                raise StackError(
                    f"Port {wanted}, configured for {name}, is used by another program: "
                    f"stop that program or choose another with --{name.removesuffix('-0')}-port."
                )
            return wanted
        reserved = set(self.chosen.values()) | set(self.configured.values())
        # A port remembered for a process that is not running yet stays its own.
        others = {port for owner, port in self.remembered.items() if owner != name}
        if (before := self.remembered.get(name)) is not None and before not in reserved and self.free(before):
            return before
        for port in self.candidates():
            if port not in reserved and port not in others and self.free(port):
                return port
        raise StackError(f"No free port between {FIRST_PORT} and {LAST_PORT} on 127.0.0.1.")
