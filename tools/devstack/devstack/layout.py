"""Where the stack keeps things: one folder (`.stack/`), its files, secrets made once, atomic writes.

Must not know what runs. The folder itself is enterable by others because Postgres may run as another user; every
file with a secret in it is readable by its owner alone.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What may be in a stack's folder and goes when it is cleaned; anything else in there is somebody else's.
PARTS = ("pids", "logs", "spans", "secrets", "faust", "kafka", "postgres", "redis")
FILES = ("endpoints.json", "ports.json", "control.json", "control.sock", "supervisor.lock", "payments.jsonl")
LOG_BYTES_MAX = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack, all below `root` (absolute)."""

    root: Path

    @classmethod
    def at(cls, folder: Path) -> "Layout":
        """Make the folder and its parts if they are not there."""
        layout = cls(folder.resolve())
        if not layout.root.exists():
            layout.root.mkdir(parents=True)
            layout.root.chmod(0o711)
        for part in (layout.pids, layout.logs, layout.spans):
            part.mkdir(exist_ok=True)
            part.chmod(0o700)
        return layout

    @property
    def pids(self) -> Path:
        """One JSON file per process that was started and not yet seen to end."""
        return self.root / "pids"

    @property
    def logs(self) -> Path:
        """NAME.log per process, and devstack.log of a detached supervisor."""
        return self.root / "logs"

    @property
    def spans(self) -> Path:
        """INSTANCE.jsonl per service: the local traces."""
        return self.root / "spans"

    @property
    def endpoints(self) -> Path:
        """The interface for every tool that attaches."""
        return self.root / "endpoints.json"

    @property
    def payments(self) -> Path:
        """The simulated payment provider's own books, shared by all order-writers."""
        return self.root / "payments.jsonl"

    @property
    def ports(self) -> Path:
        """The ports of the last run by name."""
        return self.root / "ports.json"

    @property
    def lock(self) -> Path:
        """Held by the running supervisor, released by the kernel however it ends."""
        return self.root / "supervisor.lock"

    @property
    def control(self) -> Path:
        """How to talk to the running supervisor."""
        return self.root / "control.json"

    @property
    def refusal(self) -> Path:
        """The sentence a detached supervisor ended with."""
        return self.root / "logs" / "devstack.err"

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.logs / f"{name}.log"

    def secret(self, name: str) -> str:
        """A random secret (43 characters, URL-safe), made at the first use and kept."""
        path = self.root / "secrets" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(32))
        return path.read_text()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by a whole new one that its owner alone may read; a reader sees the old or the new, never half."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def read_json(path: Path) -> Any:
    """The file's content, or None if it is not there or was cut short by a crash."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def rotate(log: Path) -> None:
    """Keep one old log at most, so that a stack used for months does not fill the disk."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log (at most 64 KiB of it are read)."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
