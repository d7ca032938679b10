"""`python -m contracts write|check`: write the files that are made of the code, or say which of them are stale."""

import argparse
import sys
from pathlib import Path

from contracts.files import ROOT, drift, write


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; `check` writes nothing, and stale files make its exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m contracts", description=__doc__)
    parser.add_argument("command", choices=["write", "check"])
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to write to or to check (this one)")
    given = parser.parse_args(arguments)
    if given.command == "write":
        for name in write(given.root):
            print(f"wrote {name}")
        return 0
    stale = drift(given.root)
    if stale:
        print(f"stale: {', '.join(stale)}. Run `python -m contracts write`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
