"""`python -m tests.simulation.gate`: walk the small worlds of idempotency by the log alone, one line for each.

The rules as written must hold in every interleaving (`--small`: only in the worlds of the test suite), each weaker rule
must break its claim. `--show` prints a shortest way there, `--only TEXT` selects by name. Exit code 0: all is as
expected.
"""

import argparse
import sys

from tests.simulation.gate_claims import CLAIMS
from tests.simulation.gate_walk import Walk
from tests.simulation.gate_world import World
from tests.simulation.gate_worlds import LARGE, LIMITS, SMALL, VARIANTS, Refutation


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.gate", description=__doc__)
    parser.add_argument("--small", action="store_true", help="leave the large worlds out")
    parser.add_argument("--show", action="store_true", help="print a shortest way to each broken claim")
    parser.add_argument("--only", default="", help="walk the worlds with this in their name")
    asked = parser.parse_args()
    for claim, sentence in CLAIMS.items():
        print(f"{claim}: {sentence}")
    hold = [Refutation("", world) for world in (SMALL if asked.small else (*SMALL, *LARGE))]
    unexpected = 0
    for title, cases in (("As written", hold), ("Weaker rules", VARIANTS), ("What is not promised", LIMITS)):
        selected = [(claim, world) for claim, world in cases if asked.only in world.name]
        if selected:
            print(f"\n{title}")
        for claim, world in selected:
            unexpected += not walked(world, claim, asked.show)
    return 1 if unexpected else 0


def walked(world: World, claim: str, show: bool) -> bool:
    """Walk it and print its line; whether the claim that broke is the expected one (none: and it was complete)."""
    verdict = Walk(world).run()
    broke = verdict.broken.claim if verdict.broken else ""
    expected = broke == claim and (verdict.complete or bool(claim))
    extent = "complete" if verdict.complete else "so far" if verdict.broken else "CUT"
    said = f"{verdict.broken.claim}: {verdict.broken.what}" if verdict.broken else "holds"
    print(
        f"{world.name:56} {verdict.states:>9,} states {extent:8} {verdict.seconds:6.1f} s  {said}"
        f"{'' if expected else '  (UNEXPECTED)'}",
        flush=True,
    )
    if verdict.broken and (show or not expected):
        for number, step in enumerate(verdict.way, 1):
            print(f"    {number:2}. {step}")
    return expected


if __name__ == "__main__":
    sys.exit(main())
