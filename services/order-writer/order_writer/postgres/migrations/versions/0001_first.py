"""Purchases, the catalogue, progress, payments, outbox, leases, pending commands."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """CREATE TABLE purchases (
        purchase_id text PRIMARY KEY,
        buyer_id text NOT NULL,
        product_id text NOT NULL,
        quantity integer NOT NULL CHECK (quantity > 0),
        status text NOT NULL CHECK (status IN ('reserved', 'confirmed', 'released', 'rejected')),
        reason text,
        reservation_no bigint,
        unit_price_minor bigint,
        currency text,
        payment_method text NOT NULL,
        fingerprint text NOT NULL,
        partition integer NOT NULL,
        source_offset bigint NOT NULL,
        source_index integer NOT NULL,
        hold_until timestamptz,
        stock_returned_at timestamptz,
        refund text NOT NULL DEFAULT 'none' CHECK (refund IN ('none', 'due', 'done')),
        trace_id text,
        traceparent text,
        version integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT reservation_numbers_are_unique UNIQUE (product_id, reservation_no))""",
    "COMMENT ON TABLE purchases IS 'Every logged purchase and its outcome. status only rises: reserved < confirmed"
    " < released, or rejected. version is 1 at reserved or rejected, and one more with every event on orders.'",
    "COMMENT ON COLUMN purchases.partition IS 'with source_offset, source_index: where its request stands in the log'",
    "COMMENT ON COLUMN purchases.traceparent IS 'only of recorded traces: payment and compensation join it'",
    "CREATE INDEX purchases_overdue ON purchases (hold_until) WHERE status = 'reserved'",
    """CREATE TABLE products (
        product_id text PRIMARY KEY,
        name text NOT NULL,
        unit_price_minor bigint NOT NULL,
        currency text NOT NULL,
        stock bigint NOT NULL,
        available bigint NOT NULL,
        per_buyer_limit integer NOT NULL,
        hold_ms bigint NOT NULL,
        status text NOT NULL,
        opens_at_ms bigint,
        closes_at_ms bigint,
        partition integer NOT NULL,
        source_offset bigint NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 50)""",
    """CREATE TABLE progress (
        partition integer PRIMARY KEY,
        next_offset bigint NOT NULL,
        source_offset bigint NOT NULL,
        load text NOT NULL,
        anchor bigint NOT NULL,
        topic_id text NOT NULL) WITH (fillfactor = 10)""",
    """CREATE TABLE payments (
        purchase_id text PRIMARY KEY REFERENCES purchases,
        method text NOT NULL,
        state text NOT NULL CHECK (state IN ('due', 'unknown', 'approved', 'declined', 'void_due', 'voided')),
        attempts integer NOT NULL DEFAULT 0,
        next_at timestamptz NOT NULL DEFAULT now(),
        lease_until timestamptz)""",
    "CREATE INDEX payments_open ON payments (next_at) WHERE state IN ('due', 'unknown', 'void_due')",
    """CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        messages bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now())""",
    "COMMENT ON TABLE outbox IS 'one row per transaction; ids are not commit order'",
    "CREATE TABLE leases (name text PRIMARY KEY, holder text NOT NULL, until timestamptz NOT NULL)",
    """CREATE TABLE pending_commands (
        command_id text PRIMARY KEY,
        purchase_id text NOT NULL,
        payload bytea NOT NULL,
        appended_at timestamptz NOT NULL)""",
    "CREATE TABLE installation (name text PRIMARY KEY, value text NOT NULL)",
)


def upgrade() -> None:
    """One statement per execute: the driver prepares each."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)
