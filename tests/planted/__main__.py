"""`python -m tests.planted`: every planted bug, in the simulator and on the real stack, and who named it.

Exit code 0: all were caught by the rule that is responsible, and the shipped services break none. `--real NAME` plays
one bug of the real stack, `--markdown FILE` writes the table.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from tests.planted.bugs import BUGS, CONTROL
from tests.planted.trial import Caught, stage
from tests.simulation.hunt import hunt
from tests.simulation.mutants import MUTANTS

HISTORIES_MAX = 50_000
HEAD = """# Planted bugs

Each is one small change of the shipped code, made by the tests and by nothing else; each has to be caught by an
invariant with a name. This page is what `python -m tests.planted --markdown docs/PLANTED_BUGS.md` wrote.

In the simulator the bug is put into the real protocol, readers or rules, and histories are played until an invariant
breaks. On the real stack a test build runs in the service's place: a sale of 40 units to 120 buyers over HTTP, with
declined payments, sends in duplicate, repeats, a retired product and poison; seconds count from its begin to the
verdict of what `replay verify --journal` runs.

Bugs of the gateway that need two of them, or faults, are planted by `python -m tests.chaos.edge --planted NAME`; what
named each of them stands in `bench/results/edge.md`.
"""


class Line(NamedTuple):
    """A row of the table."""

    where: str
    bug: str
    invariant: str
    seconds: float
    caught: bool


def simulated() -> list[Line]:
    """The simulator's mutants."""
    lines = []
    for name, variant in MUTANTS.items():
        found = hunt(variant, 1, HISTORIES_MAX)
        rule = found.failure.violation.rule if found else "NOT FOUND"
        lines.append(shown(Line("simulator", name, rule, found.seconds if found else 0.0, found is not None)))
    return lines


def real(name: str) -> list[Line]:
    """The bugs of the real stack, and the control that has none."""
    wanted = [bug for bug in (CONTROL, *BUGS) if bug.name.startswith(name)]
    with stage() as prepared:
        return [shown(line_of(prepared.play(bug))) for bug in wanted]


def line_of(caught: Caught) -> Line:
    """The rule that is responsible first, then what else broke."""
    bug = caught.bug
    rest = [rule for rule in caught.violated if rule != bug.rule]
    said = ([bug.rule] if caught.named and bug.rule else ["none" if caught.named else "NOT FOUND"]) + (
        [f"(also {', '.join(rest)})"] if rest else []
    )
    where = bug.role if bug is not CONTROL else "control"
    return Line(where, bug.name, " ".join(said), caught.seconds, caught.named)


def shown(line: Line) -> Line:
    """Print it as it is found."""
    print(f"{line.where:14} {line.bug:48} {line.invariant:24} {line.seconds:8.2f}", flush=True)
    return line


def markdown(lines: list[Line]) -> str:
    """The page."""
    bugs = [line for line in lines if line.where != "control"]
    rows = "\n".join(f"| {line.where} | {line.bug} | {line.invariant} | {line.seconds:.2f} |" for line in lines)
    total = f"{sum(line.caught for line in bugs)} of {len(bugs)} caught."
    return f"{HEAD}\n{total}\n\n| where | bug | invariant | seconds |\n|---|---|---|---|\n{rows}\n"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--real", metavar="NAME", help="only bugs of the real stack that begin so (`all`: all of them)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    asked = parser.parse_args()
    lines = [] if asked.real else simulated()
    lines += real("" if asked.real in {None, "all"} else asked.real)
    if asked.markdown:
        asked.markdown.write_text(markdown(lines))
    bugs = [line for line in lines if line.where != "control"]
    print(f"{sum(line.caught for line in bugs)} of {len(bugs)} caught")
    return 0 if all(line.caught for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
