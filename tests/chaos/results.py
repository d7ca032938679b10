"""The tables of a run, for the terminal and for `bench/results/`: faults, how often, what they broke."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.play import Played
from tests.chaos.recovery import summary
from tests.support.processes.stack import ROOT

FOLDER = ROOT / "bench" / "results"


def table(played: Sequence[Played]) -> str:
    """Markdown: one line a fault. Rounds with several faults count for each of them."""
    lines = ["| fault | what happens | strikes | void records | violations |", "|---|---|---:|---:|---:|"]
    for name, fault in FAULTS.items():
        rounds = [one for one in played if any(strike.fault == name for strike in one.round.strikes)]
        if not rounds:
            continue
        void, wrong = sum(one.void for one in rounds), sum(len(one.wrong) for one in rounds)
        noted = " (tested nothing)" if fault.zombie and not void else ""
        lines.append(f"| {name} | {fault.sentence} | {_strikes(rounds, name)} | {void}{noted} | {wrong} |")
    return "\n".join(lines)


def _strikes(rounds: Sequence[Played], name: str) -> str:
    struck = [
        hit for one in rounds for strike, hit in zip(one.round.strikes, one.hits, strict=False) if strike.fault == name
    ]
    missed = struck.count(False)
    return f"{struck.count(True)}{f' (+{missed} missed)' if missed else ''}"


def sentences(played: Sequence[Played]) -> list[str]:
    """What else was measured."""
    recovered = [found for one in played for found in one.recovered]
    return [
        f"{len(played)} rounds, {sum(one.accepted for one in played):,} purchases logged, "
        f"{sum(one.confirmed for one in played):,} confirmed, {sum(one.void for one in played):,} void records, "
        f"**{sum(len(one.wrong) for one in played)} violations**.",
        f"From kill -9 of an inventory worker to the next decision of its partitions (static member id, claim 4 s): "
        f"{summary(recovered, clean=False)}.",
        f"From SIGTERM (claim 5 s): {summary(recovered, clean=True)}.",
        f"From the last fault healed and the last buyer answered to everything at rest: "
        f"max {max((one.drained_s for one in played), default=0):.1f} s (claim 60 s).",
    ]


def machine() -> str:
    """What it ran on, and which code."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    changed = subprocess.run(
        [*git, "status", "--porcelain", "schemas", "libs", "services"], capture_output=True, text=True, check=False
    ).stdout
    return (
        f"{_cores()} cores ({model}), {platform.system()}, Python {platform.python_version()}; "
        f"commit {commit.strip() or 'unknown'}{' with changes' if changed else ''}"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def append(path: Path, title: str, heading: str, body: str) -> None:
    """Add a run to a file of results; the file begins with its title."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else f"# {title}\n"
    path.write_text(f"{before}\n## {heading}\n\n{body}\n")


def close(path: Path, title: str, seed: int, command: str, body: str, *, wrong: bool, settings: str = "") -> int:
    """Print a run and its verdict, and add it to a file of results; its exit code."""
    print(f"\n{body}")
    heading = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, seed {seed}"
    append(path, title, heading, f"{machine()}\n\n{settings}    {command}\n\n{body}")
    print(f"\nVERDICT: {'FAIL' if wrong else 'PASS'} (seed {seed})")
    return int(wrong)
