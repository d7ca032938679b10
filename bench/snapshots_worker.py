"""The inventory, with a registry that keeps little of the snapshots: `python -m bench.snapshots_worker`."""

import sys

from bench.snapshots import keep_little
from inventory import __main__ as program

if __name__ == "__main__":
    keep_little()
    sys.exit(program.main())
