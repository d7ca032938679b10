"""The progress of order-commands, what payments need, stopped partitions, and the versions told before a restore."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE progress ADD COLUMN stopped text",
    "COMMENT ON COLUMN progress.stopped IS 'why nobody may apply what comes next here; null while all is well'",
    "CREATE TABLE published (purchase_id text PRIMARY KEY, version integer NOT NULL)",
    "COMMENT ON TABLE published IS 'after a restore, until the log is applied again: versions that orders already told'",
)


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
