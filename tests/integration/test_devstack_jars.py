"""Kafka's jars: only the very files that were pinned are ever used."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import jars
from devstack.failure import StackError
from devstack.jars import Jar

CONTENT = b"a jar"


def a_jar(content: bytes = CONTENT, name: str = "thing") -> Jar:
    """A jar pinned to this content."""
    return Jar("org.example", name, "1.0", hashlib.sha256(content).hexdigest())


@pytest.fixture
def asked() -> list[str]:
    """The first line of every request to the repository."""
    return []


@pytest.fixture
def repository(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    """The address of a Maven repository holding the one jar `org.example:thing:1.0`."""

    class Noting(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.requestline)

        def log_message(self, *_: object) -> None:
            pass

    place = tmp_path / "repository" / a_jar().repository_path
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    handler = functools.partial(Noting, directory=tmp_path / "repository")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_pinned_jar_is_complete_and_the_logging_provider_is_among_them() -> None:
    """34 lines, each a group, artifact, version and 64 hex digits, no file name twice."""
    pinned = jars.pinned()
    assert len(pinned) == 34
    assert len({jar.file_name for jar in pinned}) == 34
    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in pinned)
    assert "log4j-slf4j-impl" in {jar.artifact for jar in pinned}


def test_a_jar_is_fetched_once(repository: str, tmp_path: Path) -> None:
    """What is missing is downloaded under its name, told of, and then not missing."""
    folder, fetched = tmp_path / "cache", list[Jar]()
    assert jars.missing((a_jar(),), folder) == (a_jar(),)
    jars.fetch((a_jar(),), folder, repository, fetched.append)
    assert fetched == [a_jar()]
    assert [path.name for path in folder.iterdir()] == ["thing-1.0.jar"]
    assert jars.missing((a_jar(),), folder) == ()


def test_a_changed_file_in_the_cache_counts_as_missing(tmp_path: Path) -> None:
    """A file that is there but not what was pinned is fetched again, not run."""
    (tmp_path / "thing-1.0.jar").write_bytes(b"something else")
    assert jars.missing((a_jar(),), tmp_path) == (a_jar(),)


def test_a_hash_mismatch_is_a_hard_failure(repository: str, tmp_path: Path) -> None:
    """A repository that answers with other bytes stops the start; nothing stays in the folder."""
    folder = tmp_path / "cache"
    with pytest.raises(StackError, match="instead of the pinned"):
        jars.fetch((a_jar(b"what was pinned"),), folder, repository, lambda _: None)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_no_network_is_one_sentence(tmp_path: Path, address: str) -> None:
    """An address that does not answer, or is none, says so and how to name a mirror."""
    with pytest.raises(StackError, match=r"Could not download .* name a mirror with STAMPEDE_MAVEN_URL"):
        jars.fetch((a_jar(),), tmp_path, address, lambda _: None)


def test_a_jar_the_repository_does_not_have_is_not_tried_again(
    repository: str, asked: list[str], tmp_path: Path
) -> None:
    """A 404 is final."""
    with pytest.raises(StackError, match="404"):
        jars.fetch((a_jar(name="absent"),), tmp_path, repository, lambda _: None)
    assert len(asked) == 1
