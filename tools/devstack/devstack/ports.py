"""Which port each listener gets: configured, else the one it had before, else a free one.

The choice is pure; `is_free` asks the kernel. Free ports are taken below the range from which outgoing connections
get theirs, so that a component which is being restarted finds its port still free.
"""

import random
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from devstack.failure import StackError

FIRST_PORT, LAST_PORT = 20_000, 29_999


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def anywhere() -> Iterator[int]:
    """Candidates in an order that two stacks starting together do not share."""
    start = random.randrange(FIRST_PORT, LAST_PORT + 1)  # noqa: S311 - not a secret
    yield from range(start, LAST_PORT + 1)
    yield from range(FIRST_PORT, start)


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
