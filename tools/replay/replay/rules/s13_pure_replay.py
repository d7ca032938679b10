"""Replay is pure: the same tables whatever the hash seed and time zone."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from replay import salefile
from replay.evidence import Evidence, Findings, Violation

NAME = "S13"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "replays"
_WORLDS = ({"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati"}, {"PYTHONHASHSEED": "2", "TZ": "America/St_Johns"})
_CHILD_S_MAX = 300.0


def check(evidence: Evidence) -> Findings:
    """Give two processes the same log in different worlds, in an empty folder, and compare what they say."""
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        file, room = Path(folder) / "sale.jsonl", Path(folder) / "room"
        room.mkdir()
        salefile.write(file, evidence, topics=("decisions",))
        children = [_start(file, room, world) for world in _WORLDS]
        try:
            said = [child.communicate(timeout=_CHILD_S_MAX) for child in children]
        finally:
            for child in children:
                child.kill()
        for child, (_, error) in zip(children, said, strict=True):
            if child.returncode:
                yield Violation("decisions", f"a replay ended with {child.returncode}: {error.strip()[-300:]}")
                return len(children)
        for one, other in zip(said[0][0].splitlines(), said[1][0].splitlines(), strict=True):
            if one != other:
                yield Violation(f"decisions/{one.split()[0]}", f"one replay says {one}, another {other}")
        for left in room.iterdir():
            yield Violation("decisions", f"a replay left {left.name} behind")
    return len(children)


def _start(file: Path, room: Path, world: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "replay", "digest", str(file)],
        cwd=room,
        env=os.environ | world,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
