"""A clock that is wrong, for one process from its start to its end. Its monotonic clocks stay right, as on a real host.

Both sides are here: the runner leaves `INSTANCE.clock` with the seconds; the process applies it before anything of
ours is imported, and leaves `INSTANCE.clock-read`. Only Python's clocks are wrong: the C libraries for Kafka and
Postgres go by the host's, and nothing of ours asks them for the time.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

FOLDER = "STAMPEDE_CHAOS_DIR"
INSTANCE = "STAMPEDE_INSTANCE"


def apply(environment: Mapping[str, str] = os.environ) -> None:
    """Shift `time.time` and `time.time_ns`, if this process was told to."""
    if FOLDER not in environment or INSTANCE not in environment:
        return
    folder, instance = Path(environment[FOLDER]), environment[INSTANCE]
    try:
        by_s = float(_order(folder, instance).read_text())
    except FileNotFoundError:
        return
    seconds, nanoseconds, by_ns = time.time, time.time_ns, round(by_s * 1e9)
    time.time = lambda: seconds() + by_s
    time.time_ns = lambda: nanoseconds() + by_ns
    _read(folder, instance).touch()


def set_wrong(folder: Path, instance: str, by_s: float) -> None:
    """From its next start on."""
    _order(folder, instance).write_text(str(by_s))


def runs_wrong(folder: Path, instance: str) -> bool:
    """Whether it has started by the wrong clock."""
    return _read(folder, instance).exists()


def set_right(folder: Path, instance: str) -> None:
    """From its next start on."""
    _order(folder, instance).unlink(missing_ok=True)
    _read(folder, instance).unlink(missing_ok=True)


def _order(folder: Path, instance: str) -> Path:
    return folder / f"{instance}.clock"


def _read(folder: Path, instance: str) -> Path:
    return folder / f"{instance}.clock-read"
