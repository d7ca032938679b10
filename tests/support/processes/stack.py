"""The real stack for tests: started by devstack in a folder of its own, gone afterwards, whatever happened.

`components()` gives Kafka, Postgres and Redis; `stack()` the services too. If the test run itself is killed, the
supervisor notices (`--with-parent`) and stops; the folder it leaves is removed by the next run. With
`STAMPEDE_TEST_LOGS` set to a folder, the logs of each stack are copied to it before the stack is removed.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from devstack import control, endpoints, orphans
from devstack.endpoints import Endpoints
from devstack.failure import StackError
from devstack.layout import Layout
from devstack.stack import remove

ROOT = Path(__file__).resolve().parents[3]
START_S = 180.0
STOP_S = 60.0
CALL_S = 90.0
_counter = itertools.count()


def eventually(condition: Callable[[], bool], wait_s: float = 30.0, what: str = "the condition") -> None:
    """Return once the condition holds; fail the test if it does not within the deadline."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not hold within {wait_s:.0f} s")
        time.sleep(0.05)


@dataclass(frozen=True)
class LocalStack:
    """A running stack. Process names are those of `devstack status`: `kafka`, `inventory-0`, `order-writer-0`."""

    layout: Layout

    @property
    def endpoints(self) -> Endpoints:
        """What endpoints.json says now; pids change when processes are restarted."""
        return endpoints.read(self.layout.endpoints)

    @property
    def kafka(self) -> str:
        """The broker, `host:port`."""
        return self.endpoints.kafka

    @property
    def postgres(self) -> str:
        """The DSN of the database, password included."""
        return self.endpoints.postgres

    @property
    def redis(self) -> str:
        """The URL of Redis, password included."""
        return self.endpoints.redis

    def status(self) -> dict[str, dict[str, Any]]:
        """By name: pid, state, restarts, port, ops, detail."""
        return {row["name"]: row for row in control.call(self.layout, "status")["processes"]}

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal a process as a crash would; the supervisor starts it again. Its pid."""
        return int(control.call(self.layout, "kill", name=name, number=int(number))["pid"])

    def scale(self, **counts: int) -> None:
        """`scale(inventory=2, order_writer=2)`: returns when the added ones are healthy."""
        wanted = {role.replace("_", "-"): count for role, count in counts.items()}
        control.call(self.layout, "scale", CALL_S, counts=wanted)

    def restart(self, name: str) -> None:
        """End gracefully; returns when healthy again."""
        control.call(self.layout, "restart", CALL_S, name=name)

    def await_restart(self, name: str, old_pid: int, wait_s: float = 60.0) -> int:
        """Wait until another process than `old_pid` is healthy under this name; its pid."""

        def back() -> bool:
            row = self.status()[name]
            return bool(row["state"] == "healthy" and row["pid"] != old_pid)

        eventually(back, wait_s, f"{name} healthy again after pid {old_pid}")
        return int(self.status()[name]["pid"])

    def log(self, name: str) -> str:
        """Everything a process has said so far."""
        return self.layout.log(name).read_text(errors="replace")


@contextlib.contextmanager
def components(environment: Mapping[str, str] | None = None) -> Iterator[LocalStack]:
    """Kafka, Postgres and Redis alone. `environment` is added to that of devstack itself."""
    with _running("--components-only", environment=environment) as running:
        yield running


@contextlib.contextmanager
def stack(
    env: Mapping[str, str] | None = None,
    *,
    inventory: int = 1,
    gateway: int = 1,
    order_writer: int = 1,
    environment: Mapping[str, str] | None = None,
    modules: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
) -> Iterator[LocalStack]:
    """Everything. `env` overrides settings of all services (`STAMPEDE_...`); `modules` are test builds, by service.

    `also` are more options of `devstack up`.
    """
    options = [f"--inventory={inventory}", f"--gateway={gateway}", f"--order-writer={order_writer}"]
    options += [f"--env={key}={value}" for key, value in (env or {}).items()]
    options += [f"--module={role}={module}" for role, module in (modules or {}).items()]
    with _running(*options, *also, environment=environment) as running:
        yield running


@contextlib.contextmanager
def _running(*options: str, environment: Mapping[str, str] | None) -> Iterator[LocalStack]:
    _sweep()
    layout = Layout.at(ROOT / ".stack" / f"test-{os.getpid()}-{next(_counter)}")
    said = layout.log("devstack")
    with said.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "devstack", "up", "--with-parent", f"--dir={layout.root}", *options],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        eventually(lambda: _ready(supervisor, layout, said), START_S, "the stack's start")
        yield LocalStack(layout)
    finally:
        _stop(supervisor, layout)


def _ready(supervisor: "subprocess.Popen[bytes]", layout: Layout, said: Path) -> bool:
    if supervisor.poll() is not None:
        raise AssertionError(f"the stack did not start:\n{said.read_text(errors='replace')}")
    try:
        return bool(control.call(layout, "status")["ready"])
    except StackError:
        return False


def _stop(supervisor: "subprocess.Popen[bytes]", layout: Layout) -> None:
    supervisor.terminate()
    try:
        supervisor.wait(STOP_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()
    orphans.reap(layout.pids)
    if kept := os.environ.get("STAMPEDE_TEST_LOGS"):
        shutil.copytree(layout.logs, Path(kept) / layout.root.name, dirs_exist_ok=True)
    remove(layout)


def _sweep() -> None:
    """Remove what a killed test run left; its supervisor has stopped by itself."""
    for folder in (ROOT / ".stack").glob("test-*-*"):
        if not psutil.pid_exists(int(folder.name.split("-")[1])):
            orphans.reap(folder / "pids")
            remove(Layout(folder))
