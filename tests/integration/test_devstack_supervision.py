"""What the supervisor does with real child processes (stubs in place of services)."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import pytest_asyncio

from devstack import control, probes
from devstack.failure import StackError
from devstack.layout import Layout, read_json, write_atomically
from devstack.ports import Ports
from devstack.supervisor import ManagedProcess, ProcessSpec, State, Supervisor, run_once

STUB = str(Path(__file__).resolve().parents[1] / "support" / "fakes" / "devstack_stub.py")
SOON_S = 20.0


class Recorder:
    """Notes each change of state in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, State]] = []

    def __call__(self, process: ManagedProcess) -> None:
        """Note it."""
        self.seen.append((process.spec.name, process.state))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A stack's folder."""
    return Layout.at(tmp_path / "stack")


@pytest.fixture
def recorder() -> Recorder:
    """What the supervisor told."""
    return Recorder()


@pytest_asyncio.fixture
async def supervisor(layout: Layout, recorder: Recorder) -> AsyncIterator[Supervisor]:
    """A supervisor whose children are gone after the test."""
    running = Supervisor(layout, recorder)
    yield running
    await running.stop_all()


def stub(name: str, *behaviour: str, component: bool = False, stop_wait_s: float = 10.0) -> ProcessSpec:
    """A spec whose process is the stub, probed over HTTP like a service."""
    port = Ports({}, {}).take(name)
    return ProcessSpec(
        name=name,
        role=name,
        command=(sys.executable, STUB, str(port), *behaviour),
        env=dict(os.environ),
        probe=probes.ready(port),
        component=component,
        stop_wait_s=stop_wait_s,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition with a deadline."""
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - the condition is about other processes
            await asyncio.sleep(0.02)


async def test_a_started_process_is_healthy_in_a_session_of_its_own(layout: Layout, supervisor: Supervisor) -> None:
    """`start` returns when the probe is content; the child leads its session, logs to its file and has a pid file."""
    await supervisor.start([stub("one")])
    process = supervisor.processes["one"]
    assert process.state is State.HEALTHY
    pid = process.pid
    assert pid is not None
    assert os.getsid(pid) == pid
    assert "a plain stub starts" in layout.log("one").read_text()
    assert (layout.pids / "one.json").exists()
    await supervisor.stop(["one"])
    assert not psutil.pid_exists(pid)
    assert not (layout.pids / "one.json").exists()


async def test_a_killed_process_is_started_again(supervisor: Supervisor) -> None:
    """kill -9 of a child brings another one with the same name, healthy, and counts a restart."""
    await supervisor.start([stub("one")])
    process = supervisor.processes["one"]
    old = supervisor.send("one", signal.SIGKILL)
    await until(lambda: process.state is State.HEALTHY and process.pid != old)
    assert process.restarts == 1


async def test_a_process_that_never_becomes_healthy_is_given_up(supervisor: Supervisor) -> None:
    """Five ends in a row stop the attempt with the last log lines in the sentence."""
    with pytest.raises(StackError, match=r"one ended 5 times in a row .*exit code 1(.|\n)*STAMPEDE_X is missing"):
        await supervisor.start([stub("one", "crash")])
    assert supervisor.processes["one"].state is State.FAILED
    assert supervisor.processes["one"].restarts == 4


async def test_a_program_that_is_not_there_is_one_sentence(supervisor: Supervisor) -> None:
    """A command that cannot be started ends the stack at once, naming it."""
    spec = ProcessSpec("one", "one", ("/nowhere/program",), {}, probes.ready(1))
    with pytest.raises(StackError, match=r"Cannot run one: .*/nowhere/program"):
        await supervisor.start([spec])


@pytest.mark.parametrize("behaviour", ["stubborn", "stopped"])
async def test_stopping_always_ends(supervisor: Supervisor, behaviour: str) -> None:
    """A child that ignores SIGTERM is killed at its deadline; one stopped by SIGSTOP ends all the same."""
    patience = 0.3 if behaviour == "stubborn" else 10 * SOON_S
    await supervisor.start([stub("one", *([behaviour] * (behaviour == "stubborn")), stop_wait_s=patience)])
    number = signal.SIGSTOP if behaviour == "stopped" else signal.SIGCONT
    pid = supervisor.send("one", number)
    async with asyncio.timeout(SOON_S):
        await supervisor.stop(["one"])
    assert not psutil.pid_exists(pid)
    assert supervisor.processes == {}


async def test_services_stop_before_components(supervisor: Supervisor, recorder: Recorder) -> None:
    """Services can still commit what they hold while the components run."""
    await supervisor.start([stub("database", component=True), stub("service")])
    await supervisor.stop_all()
    stopped = [name for name, state in recorder.seen if state is State.STOPPED]
    assert stopped == ["service", "database"]


async def test_a_stranger_that_answers_is_not_taken_for_the_child(supervisor: Supervisor) -> None:
    """The port of a child that does not listen is answered by another program: not healthy, and it says why."""
    stranger = stub("stranger")
    await supervisor.start([stranger])
    port = int(stranger.command[2])
    deaf = ProcessSpec("deaf", "deaf", (sys.executable, STUB, "0", "deaf"), dict(os.environ), probes.ready(port))
    starting = asyncio.create_task(supervisor.start([deaf]))
    await until(lambda: "deaf" in supervisor.processes and "another program's" in supervisor.processes["deaf"].detail)
    assert supervisor.processes["deaf"].state is State.STARTING
    starting.cancel()


async def test_restart_is_graceful_and_waits(supervisor: Supervisor) -> None:
    """`restart` returns when the successor is healthy."""
    await supervisor.start([stub("one")])
    old = supervisor.processes["one"].pid
    await supervisor.restart(["one"])
    assert supervisor.processes["one"].state is State.HEALTHY
    assert supervisor.processes["one"].pid != old


async def test_a_failing_one_shot_says_its_last_line(layout: Layout) -> None:
    """Topics or migrations that fail end the start with what they said last."""
    command = (sys.executable, STUB, "0", "crash")
    with pytest.raises(StackError, match="`migrate` failed with exit code 1: the setting STAMPEDE_X is missing"):
        await run_once(layout, "migrate", command, dict(os.environ), 20)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """pytest's own folders may be deeper than a Unix socket's path can be."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("depth", [1, 12])
async def test_control_reaches_the_supervisor_however_long_the_path(short_path: Path, depth: int) -> None:
    """A Unix socket where the path allows one, a loopback port with a token where it does not; refusals come back."""
    layout = Layout.at(short_path.joinpath(*["a-rather-long-name"] * depth))

    async def handle(command: str, arguments: dict[str, object]) -> dict[str, object]:
        if command != "scale":
            raise StackError(f"unknown {command}")
        return {"scaled": arguments}

    server = await control.serve(layout, handle)
    try:
        assert (server.sockets[0].family == socket.AF_UNIX) is (depth == 1)
        answer = await asyncio.to_thread(control.call, layout, "scale", 5.0, counts={"inventory": 2})
        assert answer == {"scaled": {"counts": {"inventory": 2}}}
        with pytest.raises(StackError, match="unknown dance"):
            await asyncio.to_thread(control.call, layout, "dance")
        write_atomically(layout.control, json.dumps({**read_json(layout.control), "token": "guessed"}))
        with pytest.raises(StackError, match="Wrong token"):
            await asyncio.to_thread(control.call, layout, "scale")
    finally:
        server.close()
    with pytest.raises(StackError, match="No stack runs from"):
        await asyncio.to_thread(control.call, layout, "scale")
