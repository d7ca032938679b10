"""The inventory, with a registry that keeps little of the snapshots: `python -m bench.snapshots_worker`."""

from bench.snapshots import keep_little
from inventory import __main__ as program

if __name__ == "__main__":
    keep_little()
    program.main()
