"""`python -m telemetry trace --id <purchase_id> --spans <folder>`: what happened to one purchase, and when."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from telemetry.waterfall import print_waterfall, spans_of_purchase


def main() -> int:
    """Run the command line; 1 when the purchase left no span."""
    parser = argparse.ArgumentParser(prog="python -m telemetry")
    trace = parser.add_subparsers(required=True).add_parser("trace", help="print the trace of one purchase")
    trace.add_argument("--id", required=True, help="the purchase_id from the Location header")
    trace.add_argument("--spans", type=Path, default=Path(".stack/spans"), help="folder of *.jsonl span files")
    given = parser.parse_args()
    spans = spans_of_purchase(given.spans, given.id)
    if not spans:
        sys.stderr.write(f"No span of purchase {given.id!r} in {given.spans}: was it sampled, and by this stack?\n")
        return 1
    print_waterfall(spans, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
