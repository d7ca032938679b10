"""The guard of `make unit` (`pytest -p tests.support.one_process`): a unit test opens no socket and starts no process.

A test that tries fails, also where the code under test swallows the error, or tries in another thread. A pair of
connected sockets within the process is allowed: asyncio wakes its loop by one. Clients written in C (librdkafka) open
sockets unseen by the interpreter; those that are still open when the test ends are found among the descriptors.
"""

import socket
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FORBIDDEN = frozenset(
    {
        *("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
        *("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"),
    }
)
NETWORKS = (socket.AF_INET, socket.AF_INET6)


class OutsideOfTheProcess(Exception):
    """A unit test went outside of its process."""


class Guard:
    """Refuses and remembers while a test runs. It sleeps between tests: an audit hook cannot be removed."""

    def __init__(self) -> None:
        self._awake = False
        self._attempts: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._awake and (event in FORBIDDEN or (event == "socket.__new__" and arguments[1] in NETWORKS)):
            self._attempts.append(event)
            raise OutsideOfTheProcess(f"{event}: a unit test stays in its process; others are in tests/integration")

    @contextmanager
    def _watch(self) -> Iterator[None]:
        before, self._attempts, self._awake = _network_sockets(), [], True
        try:
            yield
        finally:
            self._awake = False
            left_open = ["a socket opened by a library" for _ in _network_sockets() - before]
            if tried := self._attempts + left_open:
                raise OutsideOfTheProcess(", ".join(tried))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Fixtures are under the same rule."""
        with self._watch():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """The test fails for what it tried, whatever became of the error."""
        with self._watch():
            return (yield)


def _network_sockets() -> set[str]:
    """The sockets of this process that are no local pair (Linux; elsewhere none are seen)."""
    mine = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            mine.add(str(entry.readlink()))
    local = Path("/proc/self/net/unix")
    if mine and (sockets := {name for name in mine if name.startswith("socket:")}):
        pairs = {f"socket:[{line.split()[6]}]" for line in local.read_text().splitlines()[1:]}
        return sockets - pairs
    return set()


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest when `-p` loads this module."""
    config.pluginmanager.register(Guard(), "one-process")
