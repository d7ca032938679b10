"""The guard of `make unit`: tests that open sockets or start processes fail, however they hide it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.processes.stack import ROOT

REACHES = (
    "socket.socket()",
    "socket.create_server(('127.0.0.1', 0))",
    "socket.create_connection(('127.0.0.1', 9))",
    "socket.socket(socket.AF_UNIX).bind('here')",
    "socket.getaddrinfo('localhost', 80)",
    "subprocess.run(['true'])",
    "os.fork() or os._exit(0)",
)
LEAVE = f"""
import os, socket, subprocess, threading
from contextlib import suppress
import pytest

def reach(what):
    with suppress(Exception):  # as code does that takes it for an outage
        eval(what)

@pytest.mark.parametrize("what", {REACHES})
def test_in_its_body(what):
    reach(what)

@pytest.mark.parametrize("what", {REACHES})
def test_in_a_thread(what):
    thread = threading.Thread(target=reach, args=(what,))
    thread.start()
    thread.join()

def test_in_a_library_that_calls_libc():
    import ctypes
    assert ctypes.CDLL(None).socket(socket.AF_INET, socket.SOCK_STREAM, 0) > 0
"""
HAVE_A_SERVER = """
import socket, pytest

@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening

def test_that_has_a_server(server):
    pass
"""
STAY = """
import asyncio, socket

def test_a_loop_that_a_thread_wakes():
    asyncio.run(asyncio.to_thread(sum, [1, 2]))

async def test_another_one():
    await asyncio.to_thread(sum, [1, 2])

def test_a_pair():
    for one in socket.socketpair():
        one.close()
"""


def outcomes(folder: Path, tests: str) -> dict[str, int]:
    """How many of these tests passed, failed, …, under the guard."""
    file = folder / "test_guarded.py"
    file.write_text(tests)
    options = ["-q", "--asyncio-mode=auto", "-p", "tests.support.one_process", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("OutsideOfTheProcess" in ended.stdout) == (ended.returncode != 0), ended.stdout + ended.stderr
    last = ended.stdout.splitlines()[-1]
    return {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|error)", last)}


def test_a_test_that_leaves_its_process_fails(tmp_path: Path) -> None:
    """In its body, in a thread or in C, and though the code under test swallows the error."""
    assert outcomes(tmp_path, LEAVE) == {"failed": 2 * len(REACHES) + 1}


def test_a_fixture_is_under_the_same_rule(tmp_path: Path) -> None:
    """A server that is started for a test is an error of the test's."""
    assert outcomes(tmp_path, HAVE_A_SERVER) == {"error": 1}


def test_what_asyncio_needs_is_allowed(tmp_path: Path) -> None:
    """An event loop, with threads that wake it."""
    assert outcomes(tmp_path, STAY) == {"passed": 3}
