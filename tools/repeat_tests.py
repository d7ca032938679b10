"""Run the tests again and again, every other round beside busy cores, and say which failed in which round.

A test that fails in one round of many is a fault until it is explained, so everything of a failed round is kept: the
output, the JUnit file and the logs of the local stacks. No test is repeated inside a round.

    python tools/repeat_tests.py --rounds 5 --busy 2 -- .venv/bin/pytest -q tests/unit

Exit status: 0 if no test failed in any round, 1 if one did, 2 for bad arguments, 130 after Ctrl-C.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".test-repeat"
ROUNDS_MAX = 1_000
BUSY_MAX = 4 * (os.cpu_count() or 1)  # more would only starve the machine
LOGS_VARIABLE = "STAMPEDE_TEST_LOGS"  # tests/support/processes/stack.py copies the logs of each stack to this folder
# It leaves Ctrl-C to this tool, and ends by itself if the tool was killed.
SPIN = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


class Round(NamedTuple):
    """What came of one run of all tests; `failed` are the ids of tests."""

    number: int
    busy: int
    seconds: float
    passed: int
    failed: list[str]
    skipped: int

    @property
    def machine(self) -> str:
        """How busy the machine was made."""
        return f"{self.busy} busy" if self.busy else "quiet"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked; a bad one ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="repeat_tests.py",
        description="Run the tests again and again, every other round beside busy cores.",
        epilog="Exit status: 0 no test failed, 1 a test failed in some round, 2 bad arguments, 130 after Ctrl-C.",
    )
    parser.add_argument("--rounds", type=_whole(1, ROUNDS_MAX), default=5, metavar="N", help="how often (5)")
    parser.add_argument(
        "--busy", type=_whole(0, BUSY_MAX), default=2, metavar="CORES", help="busy cores in odd rounds, 0 for none (2)"
    )
    parser.add_argument("--keep", type=Path, default=KEPT, metavar="FOLDER", help=f"failed rounds go here ({KEPT})")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="pytest and its arguments, after --")
    found = parser.parse_args(argv)
    if shutil.which(found.command[0]) is None:
        parser.error(f"{found.command[0]} is not a program: give pytest and its arguments after --")
    return found


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return value

    return number


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[list[int]]:
    """Keep `count` cores busy with Python processes; their pids. They are gone afterwards, whatever happened."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.extend(subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count))
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def read_junit(file: Path) -> tuple[int, list[str], int]:
    """Passed, the ids of the failed, skipped. A test that failed and then could not be torn down is one failure.

    Raises:
        OSError: there is no such file.
        ElementTree.ParseError: it was not written to its end.
    """
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago
        name = f"{case.get('file') or case.get('classname', '')}::{case.get('name', '')}"
        parts = {part.tag for part in case}
        outcome = "failed" if parts & {"failure", "error"} else "skipped" if "skipped" in parts else "passed"
        if outcomes.get(name) != "failed":
            outcomes[name] = outcome
    counts = Counter(outcomes.values())
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    return counts["passed"], failed, counts["skipped"]


def run_round(number: int, busy: int, command: Sequence[str], folder: Path) -> Round:
    """Run all tests once; their output, JUnit file and stack logs are in `folder` afterwards."""
    folder.mkdir(parents=True)
    junit = folder / "junit.xml"
    # `xunit1` is the form that names the file of each test.
    whole = [*command, f"--junitxml={junit}", "-o", "junit_family=xunit1"]
    environment = {**os.environ, LOGS_VARIABLE: str(folder / "logs")}
    began = time.monotonic()
    with busy_cores(busy), (folder / "output.txt").open("wb") as output:
        status = _run(whole, environment, output.fileno())
    seconds = time.monotonic() - began
    try:
        passed, failed, skipped = read_junit(junit)
    except (OSError, ElementTree.ParseError):
        passed, failed, skipped = 0, [], 0
    if status != 0 and not failed:
        failed = [f"(exit status {status}, and no test is named)"]
    return Round(number, busy, seconds, passed, failed, skipped)


def _run(command: Sequence[str], environment: dict[str, str], output: int) -> int:
    """Ctrl-C reaches the whole process group: pytest ends by itself, and is waited for. SIGTERM is passed on."""
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        return child.wait()
    except SystemExit:
        child.terminate()
        raise
    finally:
        child.wait()


def summary(done: Round) -> str:
    """One line on a round."""
    return (
        f"round {done.number:<3} {done.machine:<8} {done.seconds:6.0f} s  "
        f"{done.passed:,} passed, {len(done.failed):,} failed, {done.skipped:,} skipped"
    )


def failures(rounds: Sequence[Round]) -> str:
    """The table of the tests that failed, and in which rounds."""
    where: dict[str, list[str]] = {}
    for done in rounds:
        for name in done.failed:
            where.setdefault(name, []).append(f"{done.number} ({done.machine})")
    if not where:
        return f"No test failed in {len(rounds)} rounds."
    width = max(map(len, where))
    lines = [f"{name:<{width}}  {', '.join(numbers)}" for name, numbers in sorted(where.items())]
    return "\n".join([f"{'failed':<{width}}  in rounds", *lines])


def repeat(rounds: int, busy: int, command: Sequence[str], kept: Path) -> int:
    """Run all rounds, odd ones beside `busy` cores; the exit status."""
    done: list[Round] = []
    for number in range(1, rounds + 1):
        folder = kept / f"round-{number}"
        try:
            this = run_round(number, busy if number % 2 else 0, command, folder)
        except KeyboardInterrupt:
            print(f"\n{failures(done)}\nInterrupted in round {number}; its output is in {folder}", flush=True)
            return 130
        done.append(this)
        print(summary(this) + (f"; kept in {folder}" if this.failed else ""), flush=True)
        if not this.failed:
            shutil.rmtree(folder)
    print(f"\n{failures(done)}", flush=True)
    return int(any(one.failed for one in done))


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _end)  # so that the busy cores are ended then too
    kept = chosen.keep.resolve() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        return repeat(chosen.rounds, chosen.busy, chosen.command, kept)
    finally:
        for folder in (kept, kept.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nothing was kept


if __name__ == "__main__":
    sys.exit(main())
