"""`python -m tests.simulation --histories N --seed S --processes P`: look for a history that breaks the protocol.

Exit code 0: none found, 1: found (its seed and the shortest form are printed). `--mutants` shows that it would.
"""

import argparse
import sys
import time

from tests.simulation.history import Failure, run
from tests.simulation.hunt import hunt, sweep
from tests.simulation.mutants import MUTANTS
from tests.simulation.report import describe
from tests.simulation.world import SHIPPED

MUTANT_HISTORIES_MAX = 50_000
FAILURES_SHOWN_MAX = 3


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first history; each one's seed is one more")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--mutants", action="store_true", help="find every planted bug instead")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="find this one and show the history")
    asked = parser.parse_args()
    if asked.mutant:
        found = hunt(MUTANTS[asked.mutant], asked.seed, asked.histories)
        print(describe(found.failure, MUTANTS[asked.mutant]) if found else "not found")
        return 0 if found else 1
    return _mutants(asked.seed) if asked.mutants else _sweep(asked.seed, asked.histories, asked.processes)


def _sweep(seed: int, histories: int, processes: int) -> int:
    began = time.perf_counter()
    failed: list[int] = []
    for done, seeds in sweep(seed, histories, processes):
        failed += seeds
        if sys.stderr.isatty():
            print(f"\r{done} of {histories}, {len(failed)} broken", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    for broken in sorted(failed)[:FAILURES_SHOWN_MAX]:
        try:
            run(broken)
        except Failure as failure:
            print(describe(failure, SHIPPED))
    print(
        f"{histories} histories from seed {seed}: {len(failed)} violations "
        f"({seconds:.1f} s on {processes} processes, {histories / seconds:,.0f} a second)"
    )
    return 1 if failed else 0


def _mutants(seed: int) -> int:
    missed = 0
    print(f"{'planted bug':48} {'invariant':12} {'histories':>9} {'seconds':>8}")
    for name, variant in MUTANTS.items():
        found = hunt(variant, seed, MUTANT_HISTORIES_MAX)
        missed += found is None
        if found is None:
            print(f"{name:48} NOT FOUND")
        else:
            print(f"{name:48} {found.failure.violation.rule:12} {found.histories:9} {found.seconds:8.2f}")
    print(f"{len(MUTANTS) - missed} of {len(MUTANTS)} found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
