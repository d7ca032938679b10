"""The watched inventory: `python -m tests.tour.builds.inventory`."""

from inventory import __main__ as program
from tests.tour.stays import watch

if __name__ == "__main__":
    watch("inventory")
    program.main()
