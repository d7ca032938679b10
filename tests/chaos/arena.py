"""The running stack as a fault sees it: what it may kill, freeze, arm, add and flush, and how everything is healed.

Names are those of `devstack status`. Methods block; faults call them from a thread of their own. It ends only what it
started itself or what the stack of this run keeps.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from devstack.failure import StackError
from devstack.ports import anywhere, is_free
from stampede_schemas.topics import PARTITIONS
from tests.chaos.builds import clock, points
from tests.chaos.links import Links
from tests.support.processes.stack import ROOT, LocalStack

HEAL_S_MAX = 90.0
DIED_S_MAX = 45.0  # longer than the longest backoff: half a minute after an outage nobody may come by
LOOK_S = 0.05
BUILDS = {
    "gateway": "tests.chaos.builds.gateway",
    "inventory": "tests.chaos.builds.inventory",
    "order-writer": "tests.chaos.builds.order_writer",
}


class Kill(NamedTuple):
    """An inventory worker died by our hand, or was asked to restart. `at_ms` is the broker's clock: one machine."""

    at_ms: int
    name: str
    clean: bool
    partitions: frozenset[int]


class Outsider:
    """An inventory worker that no supervisor keeps: it is ended by us, and ends by itself if we are gone."""

    def __init__(self, kafka: str, folder: Path, instance: str, group: str | None = None) -> None:
        self.name = instance
        own = {} if group is None else {points.GROUP: group}
        with (folder / f"{instance}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", BUILDS["inventory"]],
                env=os.environ
                | {
                    "STAMPEDE_KAFKA": kafka,
                    "STAMPEDE_INSTANCE": instance,
                    "STAMPEDE_OPS_PORT": str(next(port for port in anywhere() if is_free(port))),
                    "STAMPEDE_DATA_DIR": str(folder / "outside"),
                    points.FOLDER: str(folder),
                    points.BOUND: "stdin",
                }
                | own,
                cwd=ROOT,
                stdin=subprocess.PIPE,  # its end comes when we are gone, however we went
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it; at once gone with SIGKILL, else within some seconds."""
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()


class Arena:
    """One running stack under attack."""

    def __init__(self, running: LocalStack, links: Links, folder: Path, tell: Callable[[str], None]) -> None:
        self.stack = running
        self.links = links
        self.folder = folder
        self.tell = tell
        self.kills: list[Kill] = []
        self.void = 0  # records found so far, in all rounds
        self._outsiders: list[Outsider] = []
        self._frozen: set[int] = set()

    # ---- who is there

    def names(self, role: str) -> list[str]:
        """The processes of a role, in order."""
        return sorted(name for name in self.stack.status() if name == role or name.rpartition("-")[0] == role)

    def owned(self, name: str) -> frozenset[int]:
        """The partitions that an inventory worker answers for now."""
        ops = self.stack.status()[name]["ops"]
        return frozenset(number for number in range(PARTITIONS) if _answers(f"{ops}/state?partition={number}"))

    def owner(self, partition: int) -> str:
        """The inventory worker that owns a partition; the first one if nobody answers."""
        workers = self.names("inventory")
        ops = {name: self.stack.status()[name]["ops"] for name in workers}
        return next((n for n in workers if _answers(f"{ops[n]}/state?partition={partition}")), workers[0])

    # ---- what can be done to them

    def kill(self, name: str, *, clean: bool = False) -> None:
        """kill -9, or a graceful restart; waits for the process to run first, if it is just being restarted."""
        partitions = self.owned(name) if name.startswith("inventory") else frozenset()
        self.send(name, signal.SIGTERM if clean else signal.SIGKILL)
        at_ms = time.time_ns() // 1_000_000
        owning = f", which owned {len(partitions)} partitions" if name.startswith("inventory") else ""
        self.tell(f"{'restart' if clean else 'kill -9'} of {name}{owning}")
        if name.startswith("inventory"):
            self.kills.append(Kill(at_ms, name, clean, partitions))

    def send(self, name: str, number: signal.Signals) -> int:
        """Send it a signal, once it runs again if it is just being restarted. Its pid."""
        deadline = time.monotonic() + HEAL_S_MAX
        while True:
            try:
                return self.stack.kill(name, number)
            except StackError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """SIGSTOP for the length of a block, to the process and all its children (those of Postgres are many)."""
        self.tell(f"{name} is frozen")
        with self._thawed(name, self.send(name, signal.SIGSTOP)):
            yield

    @contextlib.contextmanager
    def frozen_at(self, name: str, point: str) -> Iterator[bool]:
        """The process stops itself at the point, for the length of a block; wherever it is, if it does not come by."""
        if self._strike_at([name], point, 0, signal.SIGSTOP):
            with self._thawed(name, int(self.stack.status()[name]["pid"])):
                yield True
        else:
            with self.frozen(name):
                yield False

    @contextlib.contextmanager
    def _thawed(self, name: str, pid: int) -> Iterator[None]:
        family = [pid]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [child.pid for child in psutil.Process(pid).children(recursive=True)]
        for one in family:
            self._frozen.add(one)
            _send(one, signal.SIGSTOP)
        try:
            yield
        finally:
            self.tell(f"{name} thaws")
            self._thaw(family)

    def _thaw(self, pids: list[int]) -> None:
        for pid in pids:
            _send(pid, signal.SIGCONT)
            self._frozen.discard(pid)

    def die_at(self, role: str, point: str, lets_pass: int, provoke: Callable[[], object] = lambda: None) -> bool:
        """Whichever process of the role passes the point first kills itself there, and no other. Whether one did."""
        return self._strike_at(self.names(role), point, lets_pass, signal.SIGKILL, provoke)

    def _strike_at(
        self,
        names: list[str],
        point: str,
        lets_pass: int,
        number: signal.Signals,
        provoke: Callable[[], object] = lambda: None,
    ) -> bool:
        provoke()  # first: whoever passes a point reads its order, and would take it into the grave
        order = points.arm(self.folder, names, point, lets_pass, number)
        struck: list[str] = []

        def one_did() -> bool:
            struck.extend(one for one in names if points.struck(self.folder, one))
            return bool(struck)

        self.wait_for(one_did, DIED_S_MAX)
        points.disarm(order)
        what = "kills" if number == signal.SIGKILL else "freezes"
        self.tell(f"{struck[0]} {what} itself: {point}" if struck else f"nobody came by: {point}")
        return bool(struck)

    def join(self, instance: str, group: str | None = None) -> Outsider:
        """One more inventory worker."""
        self.tell(f"{instance} joins{'' if group is None else ' with a group of its own'}")
        outsider = Outsider(self.stack.kafka, self.folder, instance, group)
        self._outsiders.append(outsider)
        return outsider

    def other_rules(self, name: str, *, wanted: bool) -> None:
        """From its next start on, this worker is of the other version (or of ours again)."""
        marker = self.folder / f"{name}.other-rules"
        if wanted:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)

    @contextlib.contextmanager
    def full_disk(self, names: list[str]) -> Iterator[list[int]]:
        """No file of these can grow for the length of a block. Their pids; sockets and pipes are not files."""
        processes = [psutil.Process(int(self.stack.status()[name]["pid"])) for name in names]
        limits = [process.rlimit(psutil.RLIMIT_FSIZE) for process in processes]
        self.tell(f"the disk is full for {', '.join(names)}")
        for process, limit in zip(processes, limits, strict=True):
            process.rlimit(psutil.RLIMIT_FSIZE, (0, limit[1]))
        try:
            yield [process.pid for process in processes]
        finally:
            for process, limit in zip(processes, limits, strict=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.rlimit(psutil.RLIMIT_FSIZE, limit)

    @contextlib.contextmanager
    def wrong_clock(self, name: str, by_s: float) -> Iterator[bool]:
        """It is restarted by another clock, and afterwards by the right one. Whether it read the wrong one."""
        self.tell(f"{name} gets a clock that is {by_s:+.0f} s wrong")
        clock.set_wrong(self.folder, name, by_s)
        try:
            self.stack.restart(name)
            yield clock.runs_wrong(self.folder, name)
        finally:
            clock.set_right(self.folder, name)
            self.stack.restart(name)

    def metric(self, name: str, metric: str) -> float:
        """What a process tells of itself, summed over labels."""
        lines = _said(f"{self.stack.status()[name]['ops']}/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{metric}[ {{]", line))

    def wait_for(self, condition: Callable[[], bool], wait_s: float) -> bool:
        """Whether it held within so many seconds."""
        deadline = time.monotonic() + wait_s
        while not (holds := condition()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return holds

    # ---- and undone

    def heal(self) -> None:
        """Thaw, end the outsiders, bring our rules back, and wait until every process is well.

        Raises:
            AssertionError: the stack did not recover in time.
        """
        self.leave()
        for marker in self.folder.glob("*.other-rules"):
            marker.unlink()
            if (name := marker.name.removesuffix(".other-rules")) in self.stack.status():
                self.stack.restart(name)
        deadline = time.monotonic() + HEAL_S_MAX
        while unwell := self._unwell():
            assert time.monotonic() < deadline, f"{HEAL_S_MAX:.0f} s after the last fault: {unwell}"
            time.sleep(LOOK_S)

    def leave(self) -> None:
        """Nothing stays frozen, no link stays broken, no outsider stays."""
        self._thaw(list(self._frozen))
        self.links.heal()
        for outsider in self._outsiders:
            outsider.end()
        self._outsiders.clear()

    def _unwell(self) -> str:
        rows = self.stack.status()
        for name, row in rows.items():
            if row["state"] != "healthy":
                return f"{name} is {row['state']} ({row['detail']})"
            if row["ops"] and not _answers(f"{row['ops']}/readyz"):
                return f"{name} is not ready: {_said(row['ops'] + '/readyz?verbose')}"
        owned = {name: self.owned(name) for name in self.names("inventory")}
        if sorted(number for numbers in owned.values() for number in numbers) == list(range(PARTITIONS)):
            return ""
        return f"partitions are answered for by { ({name: sorted(numbers) for name, numbers in owned.items()}) }"


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _said(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - an ops listener of ours
            return str(answer.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")
    except OSError as error:
        return str(error)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - an ops listener of ours
            return answer.status == 200 and json.loads(answer.read()) is not None
    except (OSError, ValueError):
        return False
