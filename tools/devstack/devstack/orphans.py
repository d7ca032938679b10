"""Processes that a killed supervisor left behind: recognised by pid file and command line, then ended.

A pid alone proves nothing, for pids are reused; a process is ours only if it was born when the file says and runs
the program that the file says.
"""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from devstack.layout import read_json, write_atomically

BIRTH_TOLERANCE_S = 2.0
STOP_S = 8.0


@dataclass(frozen=True, slots=True)
class PidFile:
    """What is written when a process starts: `born` in seconds since the epoch, `stop` the number of a signal."""

    pid: int
    born: float
    command: tuple[str, ...]
    component: bool
    stop: int


def is_ours(record: PidFile, born: float, command: Sequence[str]) -> bool:
    """Whether the process that has the pid now is the one that was started.

    Of the command line only the program's name is compared: servers rewrite their arguments to show their state.
    """
    if not command or not record.command or abs(born - record.born) > BIRTH_TOLERANCE_S:
        return False
    return Path(record.command[0]).name in command[0]


def record(folder: Path, name: str, pid: int, command: Sequence[str], component: bool, stop: int) -> None:
    """Write the pid file of a process that has just been started; nothing if it is gone already."""
    try:
        born = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    write_atomically(folder / f"{name}.json", json.dumps(asdict(PidFile(pid, born, tuple(command), component, stop))))


def forget(folder: Path, name: str) -> None:
    """The process was seen to end."""
    (folder / f"{name}.json").unlink(missing_ok=True)


def find(folder: Path) -> list[tuple[psutil.Process, PidFile]]:
    """The processes of the pid files that still run."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if not content:
            continue
        wanted = PidFile(**{**content, "command": tuple(content["command"])})
        try:
            process = psutil.Process(wanted.pid)
            if process.status() != psutil.STATUS_ZOMBIE and is_ours(wanted, process.create_time(), process.cmdline()):
                found.append((process, wanted))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def reap(folder: Path) -> int:
    """End them, services first, each with its own signal and after a deadline with SIGKILL; how many there were."""
    orphans = find(folder)
    for component in (False, True):
        group = [(process, wanted) for process, wanted in orphans if wanted.component is component]
        for process, wanted in group:
            _signal(process, wanted.stop)
            _signal(process, signal.SIGCONT)
        _, alive = psutil.wait_procs([process for process, _ in group], timeout=STOP_S)
        for process in alive:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=STOP_S)
    for path in folder.glob("*.json"):
        path.unlink()
    return len(orphans)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # psutil checks that the pid was not reused since
    except psutil.NoSuchProcess:
        return


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes whose working folder this is: what remains of a Postgres whose postmaster was killed."""
    remaining = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.cwd() == str(folder):
                remaining.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return remaining
