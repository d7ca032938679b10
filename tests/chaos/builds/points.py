"""Named crash points: a process that is told to kills (or freezes) itself the next time it passes one of them.

Both sides are here, and talk through the folder that `STAMPEDE_CHAOS_DIR` names: the runner writes `INSTANCE.armed`
with a signal, a point and how often to let it pass; the process takes the file away (so that its successor lives),
and leaves `INSTANCE.struck` when it sends itself the signal.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "STAMPEDE_CHAOS_DIR"
GROUP = "STAMPEDE_CHAOS_GROUP"  # another consumer group: it is given all partitions, for good
BOUND = "STAMPEDE_CHAOS_BOUND"  # by its standard input to the process that started it: end with it


class Points:
    """The crash points of this process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = Path(environment[FOLDER])
        self._instance = environment["STAMPEDE_INSTANCE"]
        self._armed = ""
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
            (self._folder / f"{self._instance}.struck").write_text(point)
            os.kill(os.getpid(), self._signal)

    def armed_at(self, point: str) -> bool:
        """Whether this is where it will die: what takes time to prepare is done only then."""
        self._look()
        return point == self._armed

    def _look(self) -> None:
        order = self._folder / f"{self._instance}.armed"
        try:
            said = order.read_text()
            order.unlink()
        except FileNotFoundError:
            return
        number, left, self._armed = said.split(" ", 2)
        self._signal, self._left = signal.Signals(int(number)), int(left)

    def other_rules(self) -> bool:
        """Whether this process, at its start, is to be of the other version."""
        return (self._folder / f"{self._instance}.other-rules").exists()


def arm(folder: Path, instance: str, point: str, lets_pass: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Tell a process to send itself the signal at the point; an empty point disarms it."""
    part = folder / f".{instance}.part"
    part.write_text(f"{int(number)} {lets_pass} {point}")
    part.replace(folder / f"{instance}.armed")


def disarm(folder: Path, instance: str) -> None:
    """Take back an order, also one that was read."""
    if (folder / f"{instance}.armed").exists():
        (folder / f"{instance}.armed").unlink(missing_ok=True)
    else:
        arm(folder, instance, "", 0)


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
