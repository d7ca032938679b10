"""The progress of order-commands, and what payments need."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
