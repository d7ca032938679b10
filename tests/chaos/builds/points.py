"""Named crash points: a process that is told to kills (or freezes) itself the next time it passes one of them.

Both sides are here, and talk through the folder that `STAMPEDE_CHAOS_DIR` names: the runner writes one `ORDER.order`
and, for every process that may carry it out, `INSTANCE.armed` with a signal, the order's name, a point and how often to
let it pass. The process takes the latter away (so that its successor lives), and renames the former to
`INSTANCE.struck` before it sends itself the signal: of several that are armed exactly one can.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

FOLDER = "STAMPEDE_CHAOS_DIR"
GROUP = "STAMPEDE_CHAOS_GROUP"  # another consumer group: it is given all partitions, for good
BOUND = "STAMPEDE_CHAOS_BOUND"  # by its standard input to the process that started it: end with it


class Points:
    """The crash points of this process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = Path(environment[FOLDER])
        self._instance = environment["STAMPEDE_INSTANCE"]
        self._armed = ""
        self._order = self._folder
        self._signal = signal.SIGKILL
        self._left = 0

    def passed(self, point: str) -> None:
        """The process is at this point now; perhaps it goes no further."""
        self._look()
        if point != self._armed:
            return
        self._left -= 1
        if self._left < 0:
            self._armed = ""
            if self._takes():
                os.kill(os.getpid(), self._signal)

    def armed_at(self, point: str) -> bool:
        """Whether this is where it will die: what takes time to prepare is done only then."""
        self._look()
        return point == self._armed and self._order.exists()

    def _look(self) -> None:
        order = self._folder / f"{self._instance}.armed"
        try:
            said = order.read_text()
            order.unlink()
        except FileNotFoundError:
            return
        number, left, name, self._armed = said.split(" ", 3)
        self._order = self._folder / f"{name}.order"
        self._signal, self._left = signal.Signals(int(number)), int(left)

    def _takes(self) -> bool:
        """Whether the order is still there: neither taken back nor taken by another process."""
        try:
            self._order.rename(self._folder / f"{self._instance}.struck")
        except FileNotFoundError:
            return False
        return True

    def other_rules(self) -> bool:
        """Whether this process, at its start, is to be of the other version."""
        return (self._folder / f"{self._instance}.other-rules").exists()


def arm(
    folder: Path, instances: Sequence[str], point: str, lets_pass: int, number: signal.Signals = signal.SIGKILL
) -> Path:
    """Tell some processes that the first of them to be at the point, after so many passes, sends itself the signal.

    Returns the order, for `disarm`.
    """
    name = uuid4().hex
    order = folder / f"{name}.order"
    order.write_text(point)
    for instance in instances:
        (folder / f"{instance}.struck").unlink(missing_ok=True)  # what a former order left behind
        part = folder / f".{instance}.part"
        part.write_text(f"{int(number)} {lets_pass} {name} {point}")
        part.replace(folder / f"{instance}.armed")
    return order


def disarm(order: Path) -> None:
    """Take back an order that nobody has carried out yet, also where it was read."""
    order.unlink(missing_ok=True)


def struck(folder: Path, instance: str) -> str:
    """Where the process sent itself the signal, told once; empty if it did not."""
    left = folder / f"{instance}.struck"
    try:
        said = left.read_text()
        left.unlink()
    except FileNotFoundError:
        return ""
    return said


def exchange(root: ModuleType, **parts: Any) -> None:
    """Put other parts into a composition root, before it runs. Raises KeyError where the root has no such part."""
    for name in parts:
        vars(root)[name]
    vars(root).update(parts)
