"""`python -m stampede_schemas export [--check]`: write the contract files, or say which of them are stale."""

import argparse
import sys
from pathlib import Path

from stampede_schemas.export import ROOT, drift, export


def main(arguments: list[str] | None = None) -> int:
    """Command line; with `--check` nothing is written and stale files make the exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m stampede_schemas", description=__doc__)
    parser.add_argument("command", choices=["export"])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    parser.add_argument("--to", type=Path, default=ROOT, help="the folder that holds json/ and asyncapi.yaml")
    asked = parser.parse_args(arguments)
    if not asked.check:
        for name in export(asked.to):
            print(f"wrote {name}")
        return 0
    stale = drift(asked.to)
    if stale:
        print(f"stale: {', '.join(stale)}. Run `python -m stampede_schemas export`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
