"""The watched order-writer: `python -m tests.tour.builds.order_writer`."""

from order_writer import __main__ as program
from tests.tour.stays import watch

if __name__ == "__main__":
    watch("order_writer")
    program.main()
