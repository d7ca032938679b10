"""`python -m tests.chaos --minutes M --seed S [--fault NAME ...]`: break the real stack, and show that it holds.

Every choice comes from the seed, which is printed. Exit code 0: no violation; 1: some; the evidence is then kept under
`.stack/` and its place printed. Nothing else stays behind.
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from replay import live, salefile
from replay.evidence import Evidence
from tests.chaos.arena import BUILDS, Arena
from tests.chaos.builds.points import FOLDER
from tests.chaos.faults import FAULTS, KINDS
from tests.chaos.links import links
from tests.chaos.plan import Round, rounds
from tests.chaos.play import Played, play
from tests.chaos.results import FOLDER as RESULTS
from tests.chaos.results import close, sentences, table
from tests.support.processes.stack import ROOT, stack

TITLE = "Chaos on the real stack"


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    top.add_argument("--minutes", type=float, default=10.0, help="no round begins after this (10)")
    top.add_argument("--seed", type=int, default=None, help="of every choice; drawn and printed if not given")
    top.add_argument("--fault", action="append", default=[], choices=sorted(FAULTS), metavar="NAME", help="only this")
    top.add_argument("--without", action="append", default=[], choices=sorted(FAULTS), metavar="NAME", help="not this")
    top.add_argument("--arrivals", type=float, default=90.0, help="buyers a second, of all products (90)")
    top.add_argument("--list", action="store_true", help="name the faults")
    top.add_argument("--out", type=Path, default=RESULTS / "chaos.md", help="the table is added to this file")
    return top


@contextmanager
def arena(tell: Callable[[str], None], env: Mapping[str, str] | None = None, *, each: int = 2) -> Iterator[Arena]:
    """A stack of test builds, two gateways and so many of the other services, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="stampede-chaos-") as made:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {FOLDER: made, "PYTHONPATH": path, **(env or {})}
        with (
            links() as wires,
            stack(own, modules=BUILDS, inventory=each, gateway=2, order_writer=each, also=wires.options) as running,
        ):
            fought = Arena(running, wires, Path(made), tell)
            try:
                yield fought
            finally:
                fought.leave()


class Teller:
    """Lines of progress with the time since the run began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def minutes(self) -> float:
        """Since the run began."""
        return (time.monotonic() - self._began) / 60

    def __call__(self, line: str) -> None:
        """One line."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {line}", flush=True)


def main() -> int:
    """Run the command line."""
    asked = parser().parse_args()
    if asked.list:
        for name, fault in FAULTS.items():
            print(f"{name:40} {fault.sentence}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = time.time_ns() % 1_000_000 if asked.seed is None else asked.seed
    tell = Teller()
    tell(f"seed {seed}, {asked.minutes:g} minutes; starting the stack")
    kinds = {name: KINDS[name] for name in asked.fault or FAULTS if name not in asked.without}
    played: list[Played] = []
    try:
        with arena(tell) as fought:
            tell("the stack is up")
            for planned in rounds(seed, kinds, asked.arrivals):
                played.append(_round(fought, planned))
                if played[-1].wrong:
                    tell(f"evidence: {keep(fought, played[-1].evidence, f'chaos-{seed}-{planned.number}')}")
                    break
                if tell.minutes >= asked.minutes:
                    break
    except KeyboardInterrupt:
        tell("interrupted")
    return _report(asked, seed, played)


def _round(fought: Arena, planned: Round) -> Played:
    faults = ", ".join(strike.fault for strike in planned.strikes)
    fought.tell(f"round {planned.number}: {faults} ({planned.lasts_s:.0f} s)")
    one = asyncio.run(play(fought, planned))
    for sentence in one.wrong:
        fought.tell(f"WRONG: {sentence}")
    fought.tell(
        f"round {planned.number}: {len(one.wrong)} violations, {one.accepted} logged, {one.confirmed} confirmed, "
        f"{one.void} void records, at rest after {one.drained_s:.1f} s"
    )
    return one


def keep(fought: Arena, evidence: Evidence | None, name: str) -> Path:
    """The log of the failed run as `replay check` reads it, and what every process said."""
    kept = ROOT / ".stack" / f"failed-{name}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(fought.stack.layout.logs, kept)
    for log in fought.folder.glob("*.log"):
        shutil.copy(log, kept)
    if evidence is not None:
        salefile.write(kept / "sale.jsonl.gz", evidence, topic_ids=live.ids(fought.stack.kafka))
    return kept


def _report(asked: argparse.Namespace, seed: int, played: list[Played]) -> int:
    told = table(played), *(f"- {sentence}" for sentence in sentences(played))
    body = "\n".join([told[0], "", *told[1:]])
    if not played:
        print(f"\n{body}")
        return 2
    only = "".join(f" --fault '{name}'" for name in asked.fault)
    only += "".join(f" --without '{name}'" for name in asked.without)
    command = f"python -m tests.chaos --minutes {asked.minutes:g} --seed {seed}{only}"
    return close(asked.out, TITLE, seed, command, body, wrong=any(one.wrong for one in played))


if __name__ == "__main__":
    sys.exit(main())
