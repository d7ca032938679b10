"""The progress of order-commands, what payments need, stopped partitions, and the versions told before a restore."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE progress ADD COLUMN stopped text",
    "ALTER TABLE progress ADD COLUMN recovered_to bigint",
    "COMMENT ON COLUMN progress.recovered_to IS 'committed offsets up to here are of before a restore, and expected'",
    "COMMENT ON COLUMN progress.stopped IS 'why nobody may apply what comes next here; null while all is well'",
    "CREATE TABLE published (purchase_id text PRIMARY KEY, version integer NOT NULL)",
    "COMMENT ON TABLE published IS 'after a restore, until the log is applied: versions that orders told before'",
    """CREATE TABLE command_progress (
        partition integer PRIMARY KEY,
        next_offset bigint NOT NULL,
        topic_id text NOT NULL) WITH (fillfactor = 10)""",
    "COMMENT ON TABLE command_progress IS 'how far order-commands is applied'",
    """CREATE TABLE applied (
        topic text NOT NULL,
        partition integer NOT NULL,
        until timestamptz NOT NULL,
        PRIMARY KEY (topic, partition)) WITH (fillfactor = 10)""",
    "COMMENT ON TABLE applied IS 'what was appended to the partition before this instant of the server is applied'",
    # A payment that nobody can settle by an order (reported for a purchase that never came) is voided all the same.
    "ALTER TABLE payments DROP CONSTRAINT payments_purchase_id_fkey",
    "ALTER TABLE payments ADD COLUMN captured boolean NOT NULL DEFAULT false",
    "ALTER TABLE payments ADD COLUMN begun_at timestamptz",
    "ALTER TABLE payments ADD COLUMN asked_at timestamptz",
    "COMMENT ON COLUMN payments.captured IS 'an approval was heard: voiding gives money back'",
    "COMMENT ON COLUMN payments.begun_at IS 'the first call: after the idempotency horizon only queries are allowed'",
    "COMMENT ON COLUMN payments.asked_at IS 'when the last call began'",
    "ALTER TABLE pending_commands ADD COLUMN parked_at timestamptz NOT NULL DEFAULT now()",
    "ALTER TABLE pending_commands ADD COLUMN partition integer NOT NULL DEFAULT 0",
    "ALTER TABLE pending_commands ADD COLUMN source_offset bigint NOT NULL DEFAULT -1",
    "CREATE INDEX pending_commands_by_age ON pending_commands (parked_at)",
    """CREATE TABLE product_cancellations (
        request_id text PRIMARY KEY,
        product_id text NOT NULL,
        asked_at timestamptz NOT NULL DEFAULT now(),
        reached bigint NOT NULL DEFAULT 0,
        cancelled bigint NOT NULL DEFAULT 0,
        done_at timestamptz)""",
    "COMMENT ON COLUMN product_cancellations.reached IS 'each reservation_no up to here was told'",
    "CREATE INDEX product_cancellations_open ON product_cancellations (asked_at) WHERE done_at IS NULL",
)


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
