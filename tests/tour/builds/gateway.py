"""The watched gateway: `python -m tests.tour.builds.gateway`."""

from gateway import __main__ as program
from tests.tour.stays import watch

if __name__ == "__main__":
    watch("gateway")
    program.main()
