"""A product's cancellation keeps the place in the log up to which it means reservations.

Cancellations that were read before get what they meant: the orders that were there then. The column has no default: an
order-writer of before stops at such a command, rather than undo orders by the moment at which it reads it, and its
successor reads it again.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE product_cancellations ADD COLUMN requests_end bigint",
    """UPDATE product_cancellations c SET requests_end = (
         SELECT coalesce(max(p.source_offset) + 1, 0) FROM purchases p
         WHERE p.product_id = c.product_id AND p.created_at <= c.asked_at)""",
    "ALTER TABLE product_cancellations ALTER COLUMN requests_end SET NOT NULL",
    "COMMENT ON COLUMN product_cancellations.requests_end IS 'reservations below this offset of requests are meant'",
    "COMMENT ON COLUMN product_cancellations.asked_at IS 'when an order-writer read it: the order of the sweeps only'",
)


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
