"""The gateway, which may be told to run by a wrong clock: `python -m tests.chaos.builds.gateway`."""

import sys

from gateway import __main__ as program

if __name__ == "__main__":
    sys.exit(program.main())
