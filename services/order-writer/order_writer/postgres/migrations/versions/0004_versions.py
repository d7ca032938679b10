"""Says what `purchases.status` and `purchases.version` mean by now; no table changes."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENT = (
    "COMMENT ON TABLE purchases IS 'Every logged purchase and its outcome. status only rises: rejected < reserved"
    " < confirmed < released. version is 1 at rejected, 2 at reserved, and one more with every event on orders.'"
)


def upgrade() -> None:
    """One comment."""
    op.get_bind().exec_driver_sql(STATEMENT)
