"""`make test-repeat`: what it says of a tiny suite, what it keeps of a failed round, and that it leaves no process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.processes.stack import eventually
from tools import repeat_tests

TOOL = Path(repeat_tests.__file__)
EACH_SECOND_TIME = """
from pathlib import Path
import pytest

def test_that_fails_each_second_time():
    count = Path(__file__).with_name("count")
    times = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(times))
    assert times % 2, f"time {times}"

def test_that_passes():
    pass

@pytest.mark.skip
def test_that_is_skipped():
    pass
"""
WAITS = """
import time
from pathlib import Path

def test_that_waits_for_ever():
    Path(__file__).with_name("begun").touch()
    time.sleep(300)
"""


def suite(folder: Path, text: str) -> list[str]:
    """A command that runs a suite of one file. Its root is told: pytest would guess another beside a clone in /tmp."""
    (folder / "test_tiny.py").write_text(text)
    options = ["-q", "--disable-plugin-autoload", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    return [sys.executable, "-m", "pytest", *options]


def kept_in(folder: Path) -> set[str]:
    """Files that a run kept, below the folder of that run."""
    return {str(file.relative_to(folder).as_posix()).partition("/")[2] for file in folder.rglob("*") if file.is_file()}


def gone(pid: int) -> bool:
    """Whether no such process runs."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_test_that_fails_each_second_time_is_reported_with_its_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds 2 and 4 of 4 are named, in their lines and in the table, and only they are kept. Exit status 1."""
    kept = tmp_path / "kept"
    (tmp_path / "suite").mkdir()
    command = suite(tmp_path / "suite", EACH_SECOND_TIME)
    assert repeat_tests.main(["--rounds", "4", "--busy", "1", "--keep", str(kept), "--", *command]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [
        ["round", "1", "1"],
        ["round", "2", "quiet"],
        ["round", "3", "1"],
        ["round", "4", "quiet"],
    ]
    assert ["2 passed, 0 failed, 1 skipped" in line for line in lines[:4]] == [True, False, True, False]
    assert ["1 passed, 1 failed, 1 skipped; kept in" in line for line in lines[:4]] == [False, True, False, True]
    named, rounds = lines[-1].split("  ", 1)
    assert named == "test_tiny.py::test_that_fails_each_second_time"
    assert rounds.strip() == "2 (quiet), 4 (quiet)"
    assert kept_in(kept) == {f"round-{number}/{file}" for number in (2, 4) for file in ("output.txt", "junit.xml")}
    [output] = kept.glob("*/round-4/output.txt")
    assert "time 4" in output.read_text()


def test_nothing_is_kept_if_no_test_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0, and no folder is left."""
    command = suite(tmp_path, "def test_that_passes():\n    pass\n")
    assert repeat_tests.main(["--rounds", "2", "--busy", "0", "--keep", str(tmp_path / "kept"), "--", *command]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "No test failed in 2 rounds."
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("import not_there", "test_tiny"),
        ("", "exit status 5, and no test is named"),
        ("import os; os._exit(3)", "exit status 3, and no test is named"),
    ],
    ids=["cannot be imported", "holds no test", "ends pytest"],
)
def test_a_round_without_tests_is_a_failed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    """What cannot be collected, is empty or takes pytest along did not pass."""
    command = suite(tmp_path, text)
    assert repeat_tests.main(["--rounds", "1", "--busy", "0", "--keep", str(tmp_path / "kept"), "--", *command]) == 1
    assert named in capsys.readouterr().out.splitlines()[-1]


def test_a_test_that_fails_and_cannot_be_torn_down_is_one_failure(tmp_path: Path) -> None:
    """JUnit files name such a test twice."""
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite><testcase file="a.py" name="one"><failure/></testcase>'
        '<testcase file="a.py" name="one"><error/></testcase><testcase file="a.py" name="two"/>'
        "</testsuite></testsuites>"
    )
    assert repeat_tests.read_junit(junit) == (1, ["a.py::one"], 0)


def test_busy_cores_are_busy_and_gone_afterwards() -> None:
    """Also when what runs beside them fails."""
    pids: list[int] = []

    def beside_them() -> None:
        with repeat_tests.busy_cores(2) as started:
            pids.extend(started)
            for pid in pids:
                eventually(lambda pid=pid: psutil.Process(pid).cpu_times().user > 0.2, what="a busy core")  # type: ignore[misc]
            raise AssertionError("the tests failed")

    with pytest.raises(AssertionError, match="the tests failed"):
        beside_them()
    assert len(pids) == 2
    assert all(map(gone, pids))


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell without job control starts what it leaves in the background deaf to SIGINT, and so are its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_busy_core_is_left_when_it_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C goes to the whole group, SIGTERM to the tool alone; where it was killed, busy cores end by themselves."""
    options = ["--rounds", "9", "--busy", "2", "--keep", str(tmp_path / "kept")]
    tool = subprocess.Popen(
        [sys.executable, str(TOOL), *options, "--", *suite(tmp_path, WAITS)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        eventually((tmp_path / "begun").exists, what="the test under way")
        begun = {child.pid: child.cmdline() for child in psutil.Process(tool.pid).children(recursive=True)}
        cores = [pid for pid, command in begun.items() if "pytest" not in command]
        assert len(cores) == 2
        if how == signal.SIGINT:
            os.killpg(tool.pid, how)
        else:
            tool.send_signal(how)
        said, _ = tool.communicate(timeout=30)
        eventually(lambda: all(map(gone, cores if how == signal.SIGKILL else begun)), 10, "the end of all processes")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tool.pid, signal.SIGKILL)
    assert tool.returncode == {signal.SIGINT: 130, signal.SIGTERM: 128 + signal.SIGTERM}.get(how, -how)
    if how == signal.SIGINT:
        assert "Interrupted in round 1" in said
        assert kept_in(tmp_path / "kept") == {"round-1/output.txt", "round-1/junit.xml"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--rounds", "0"], "'0' is not a whole number from 1 to"),
        (["--rounds", "many"], "'many' is not a whole number"),
        (["--busy", "-1"], "'-1' is not a whole number from 0 to"),
        (["--busy", "1000000"], "'1000000' is not a whole number from 0 to"),
        ([], "COMMAND"),
    ],
)
def test_bad_arguments_are_named(capsys: pytest.CaptureFixture[str], wrong: list[str], named: str) -> None:
    """Exit status 2 and one sentence, before anything runs."""
    with pytest.raises(SystemExit) as ended:
        repeat_tests.main([*wrong, *(["--", "pytest-that-is-not-there"] if wrong else [])])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_a_program_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error ends at once and not in N failed rounds."""
    with pytest.raises(SystemExit) as ended:
        repeat_tests.main(["--", "no-such-pytest"])
    assert ended.value.code == 2
    assert "no-such-pytest is not a program" in capsys.readouterr().err
