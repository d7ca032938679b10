"""Keeps processes running: start, wait until healthy, restart with backoff, stop in order.

It takes a list of specs and knows nothing of Kafka or gateways. Each child is a session of its own, so that Ctrl-C
reaches only the supervisor, and writes to its own log file, so that no child ever waits for the supervisor to read.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from devstack import orphans
from devstack.backoff import Backoff
from devstack.failure import StackError
from devstack.layout import Layout, last_lines, rotate

PROBE_EVERY_S = 0.1
LAST_LINES = 15


class State(StrEnum):
    """What the supervisor knows of a process."""

    STARTING = "starting"
    HEALTHY = "healthy"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


async def nothing_to_prepare() -> None:
    """For processes that need nothing done before each start."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running.

    `probe(pid)` returns None once that very process is healthy, else why it is not (yet); `prepare` runs before each
    start; `env` is the whole environment of the child; `user` is a name to run as when the supervisor is root.
    """

    name: str
    role: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    probe: Callable[[int], Awaitable[str | None]]
    address: str = ""
    ops: str = ""
    component: bool = False
    stop_signal: signal.Signals = signal.SIGTERM
    stop_wait_s: float = 10.0
    start_wait_s: float = 60.0
    cwd: Path | None = None
    user: str | None = None
    prepare: Callable[[], Awaitable[None]] = nothing_to_prepare


@dataclass(slots=True)
class ManagedProcess:
    """A spec and what has become of it so far."""

    spec: ProcessSpec
    state: State = State.STARTING
    pid: int | None = None
    restarts: int = 0
    detail: str = ""
    wanted: bool = True
    backoff: Backoff = field(default_factory=Backoff)
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """All managed processes of one stack. `on_change(process)` is called after each change of state or pid."""

    def __init__(self, layout: Layout, on_change: Callable[[ManagedProcess], None]) -> None:
        self._layout = layout
        self._on_change = on_change
        self.processes: dict[str, ManagedProcess] = {}
        self.gave_up: asyncio.Future[StackError] = asyncio.get_running_loop().create_future()

    async def start(self, specs: Iterable[ProcessSpec]) -> None:
        """Start all at once and return when every one is healthy; raises StackError when one is given up."""
        started = [self._keep(spec) for spec in specs]
        for process in started:
            await self.settled(process)

    async def settled(self, process: ManagedProcess) -> None:
        """Wait until it is healthy (or no longer wanted); raises StackError if the supervisor gives up meanwhile."""
        while process.wanted and process.state is not State.HEALTHY:
            process.changed.clear()
            waiting: asyncio.Future[Any] = asyncio.ensure_future(process.changed.wait())
            given_up: asyncio.Future[Any] = self.gave_up
            await asyncio.wait({waiting, given_up}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self.gave_up.done():
                raise self.gave_up.result()

    async def stop(self, names: Iterable[str]) -> None:
        """Ask them to end, all at once, and end them after their deadline; they are forgotten."""
        stopping = [self.processes[name] for name in names if name in self.processes]
        for process in stopping:
            process.wanted = False
            process.changed.set()
        await asyncio.gather(*(self._end(process) for process in stopping))
        for process in stopping:
            self._become(process, State.STOPPED)
            del self.processes[process.spec.name]

    async def stop_all(self) -> None:
        """Services first, so that they can still commit what they hold; then the components."""
        for component in (False, True):
            await self.stop([name for name, process in self.processes.items() if process.spec.component is component])

    def send(self, name: str, number: signal.Signals) -> int:
        """Signal the process itself (not its children), as a crash or an orchestrator would; its pid."""
        process = self.processes[name]
        if process.pid is None:
            raise StackError(f"{name} is not running now ({process.state}).")
        os.kill(process.pid, number)
        return process.pid

    async def restart(self, names: Iterable[str]) -> None:
        """End them gracefully and wait until their successors are healthy."""
        for process in [self.processes[name] for name in names]:
            await self._ask_to_end(process)
            await self.settled(process)

    def _keep(self, spec: ProcessSpec) -> ManagedProcess:
        process = self.processes[spec.name] = ManagedProcess(spec)
        rotate(self._layout.log(spec.name))
        process.task = asyncio.create_task(self._run(process), name=f"keep {spec.name}")
        return process

    async def _run(self, process: ManagedProcess) -> None:
        """Start it again and again; what cannot be started at all ends the stack."""
        try:
            while process.wanted:
                await self._one_life(process)
                if not process.wanted:
                    return
                if process.backoff.exhausted:
                    self._give_up(process, StackError(self._obituary(process)))
                    return
                self._become(process, State.RESTARTING, process.detail)
                await asyncio.sleep(process.backoff.delay_s)
                process.restarts += 1
        except (StackError, OSError) as error:
            self._give_up(process, error)

    def _give_up(self, process: ManagedProcess, error: Exception) -> None:
        self._become(process, State.FAILED, str(error))
        if not self.gave_up.done():
            self.gave_up.set_result(
                error
                if isinstance(error, StackError)
                else StackError(f"Cannot run {process.spec.name}: {error} ({type(error).__name__}).")
            )

    async def _one_life(self, process: ManagedProcess) -> None:
        spec = process.spec
        await spec.prepare()
        if not process.wanted:
            return
        child = await self._spawn(spec)
        process.pid, born = child.pid, time.monotonic()
        process.ended.clear()
        orphans.record(self._layout.pids, spec.name, child.pid, spec.command, spec.component, spec.stop_signal)
        self._become(process, State.STARTING)
        probing = asyncio.create_task(self._probe(process, child.pid))
        try:
            code = await child.wait()
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing
        was_healthy = process.state is State.HEALTHY
        process.pid = None
        process.ended.set()
        orphans.forget(self._layout.pids, spec.name)
        process.backoff = process.backoff.after_exit(was_healthy, time.monotonic() - born)
        process.detail = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"

    async def _spawn(self, spec: ProcessSpec) -> asyncio.subprocess.Process:
        with self._layout.log(spec.name).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *spec.command,
                env=dict(spec.env),
                cwd=spec.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **run_as(spec.user),
            )

    async def _probe(self, process: ManagedProcess, pid: int) -> None:
        """Until healthy; a process that does not get there in time is killed, which counts as a failure."""
        deadline = time.monotonic() + process.spec.start_wait_s
        try:
            while (why_not := await process.spec.probe(pid)) is not None:
                process.detail = why_not
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    return
                await asyncio.sleep(PROBE_EVERY_S)
        except Exception as error:  # a bug in a probe must end the stack, not leave it waiting for ever
            self._give_up(process, error)
            return
        self._become(process, State.HEALTHY)

    async def _end(self, process: ManagedProcess) -> None:
        await self._ask_to_end(process)
        if process.task is not None:
            process.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await process.task

    async def _ask_to_end(self, process: ManagedProcess) -> None:
        """The stop signal, then SIGKILL at the deadline; returns when the process is gone."""
        if (pid := process.pid) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, process.spec.stop_signal)
            os.kill(pid, signal.SIGCONT)  # a stopped process could not answer
        for last_resort in (False, True):
            try:
                await asyncio.wait_for(process.ended.wait(), process.spec.stop_wait_s)
            except TimeoutError:
                if not last_resort:
                    os.kill(pid, signal.SIGKILL)
            else:
                return

    def _become(self, process: ManagedProcess, state: State, detail: str = "") -> None:
        process.state, process.detail = state, detail
        process.changed.set()
        self._on_change(process)

    def _obituary(self, process: ManagedProcess) -> str:
        log = self._layout.log(process.spec.name)
        tail = "".join(f"\n  {line}" for line in last_lines(log, LAST_LINES))
        return (
            f"{process.spec.name} ended {process.backoff.failures} times in a row without becoming healthy "
            f"({process.detail}); the last lines of {log}:{tail}"
        )


def run_as(user: str | None) -> dict[str, Any]:
    """What `subprocess` needs to start a program as another user (its name) with that user's group alone."""
    if user is None:
        return {}
    import pwd

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


async def run_once(layout: Layout, name: str, command: tuple[str, ...], env: Mapping[str, str], wait_s: float) -> None:
    """Run a one-shot (topics, migrations) to its end; raises StackError with its last line if it failed."""
    log = layout.log(name)
    rotate(log)
    with log.open("ab") as file:
        child = await asyncio.create_subprocess_exec(
            *command, env=dict(env), stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        code = await asyncio.wait_for(child.wait(), wait_s)
    except TimeoutError:
        raise StackError(f"`{name}` did not finish within {wait_s:.0f} s; see {log}.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if code != 0:
        said = (last_lines(log, 1) or ["(it said nothing)"])[0]
        raise StackError(f"`{name}` failed with exit code {code}: {said} (see {log})")
