"""Kafka's jars: pinned by SHA-256, fetched once into the user's cache folder, checked at every start.

Must not start anything, and must never leave a half-written or wrong file under a jar's name.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from devstack.failure import StackError

PARALLEL_DOWNLOADS = 6
TRIES = 3
TIMEOUT_S = 30.0
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Jar:
    """One Maven artifact and the SHA-256 (hex) its file must have."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The jar's name in the cache folder and in the repository."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def repository_path(self) -> str:
        """Where a Maven repository keeps it, relative to the repository's address."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file_name}"


def parse(text: str) -> tuple[Jar, ...]:
    """Read lines of `sha256 group:artifact:version`."""
    jars = []
    for line in text.splitlines():
        if line.strip():
            sha256, coordinates = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return tuple(jars)


def pinned() -> tuple[Jar, ...]:
    """Every jar Kafka needs to run, and nothing else."""
    return parse(files("devstack").joinpath("data/kafka-jars.sha256").read_text())


def cache_folder() -> Path:
    """Where jars outlive a clone, so that the next one starts at once."""
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "stampede" / "jars"
    home = Path.home()
    return (home / "Library/Caches" if sys.platform == "darwin" else home / ".cache") / "stampede" / "jars"


def repository_url() -> str:
    """The Maven repository: `STAMPEDE_MAVEN_URL` (a mirror) or Maven Central."""
    from jgo.constants import MAVEN_CENTRAL_URL

    return str(os.environ.get("STAMPEDE_MAVEN_URL") or MAVEN_CENTRAL_URL).rstrip("/")


def matches(path: Path, jar: Jar) -> bool:
    """Whether the file is there and is the very file that was pinned."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def missing(jars: tuple[Jar, ...], folder: Path) -> tuple[Jar, ...]:
    """The jars that have to be fetched: not in the folder, or not what they claim to be."""
    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        present = pool.map(lambda jar: matches(folder / jar.file_name, jar), jars)
    return tuple(jar for jar, there in zip(jars, present, strict=True) if not there)


def fetch(jars: tuple[Jar, ...], folder: Path, url: str, on_fetched: Callable[[Jar], None]) -> None:
    """Download several at a time; raises StackError at the first that cannot be had or is not what was pinned."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"Cannot make {folder} for Kafka's jars ({error}); set XDG_CACHE_HOME elsewhere.") from error
    pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
    try:
        for jar in pool.map(lambda jar: _fetch_one(jar, folder, url), jars):
            on_fetched(jar)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch_one(jar: Jar, folder: Path, url: str) -> Jar:
    source = f"{url}/{jar.repository_path}"
    part = folder / f".{jar.file_name}.{os.getpid()}.part"
    for attempt in range(1, TRIES + 1):
        try:
            digest = _download(source, part)
            if digest != jar.sha256:
                raise StackError(
                    f"{source} has SHA-256 {digest} instead of the pinned {jar.sha256}: it was not used. "
                    "Check what answers at that address (STAMPEDE_MAVEN_URL, proxy)."
                )
            part.replace(folder / jar.file_name)
        except (urllib.error.URLError, OSError, ValueError) as error:
            client_error = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if attempt == TRIES or client_error or isinstance(error, ValueError):
                raise StackError(
                    f"Could not download {source} ({error}). "
                    "Check the network or proxy, or name a mirror with STAMPEDE_MAVEN_URL."
                ) from error
        else:
            return jar
        finally:
            part.unlink(missing_ok=True)
    raise AssertionError("unreachable: the last try returns or raises")


def _download(source: str, target: Path) -> str:
    """Stream into `target`; the SHA-256 of what came."""
    digest = hashlib.sha256()
    # The scheme is the operator's choice of mirror; the hash decides whether the content is used.
    with urllib.request.urlopen(source, timeout=TIMEOUT_S) as response, target.open("wb") as file:  # noqa: S310
        while chunk := response.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
