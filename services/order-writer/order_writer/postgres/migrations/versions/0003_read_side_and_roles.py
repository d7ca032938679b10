"""Indexes for the lists of buyers and operators; the outbox is no longer compressed.

All rows of one transaction share `created_at`, so the entries of the second and third are stored once per transaction
and cost little; `purchase_id`, which breaks the ties, is left out of all three for the same reason: the few rows of a
tie are sorted when they are read. `status` in front of the time costs nothing more on a change of status: every one
writes all indexes already, because of `purchases_overdue`.

An outbox row lives for milliseconds: packing its megabyte cost a third of the time of its transaction.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS: tuple[str, ...] = (
    "CREATE INDEX purchases_of_buyer ON purchases (buyer_id, created_at)",
    "CREATE INDEX purchases_of_product ON purchases (product_id, status, created_at)",
    "CREATE INDEX purchases_by_status ON purchases (status, created_at)",
    "ALTER TABLE outbox ALTER COLUMN messages SET STORAGE EXTERNAL",
)


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
