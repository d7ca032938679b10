"""Applies the records of `order-commands`, in one transaction with the progress.

Payment reports, reported refunds and cancellations are messages to the saga. One that comes before its row is kept in
`pending_commands`: a sweep joins the two each second, so that a command and a row whose transactions missed each other
are joined all the same. It becomes a dead letter only when `decisions` has been applied for ten minutes beyond the
moment it came; an approval among those is voided: the money goes back. A rejected row counts as none until its
partition of `decisions` is applied beyond that moment: the command may be about a later reservation, which is read only
after it.
"""

import logging
from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from eventlog.reader import Progress
from order_writer.consume.progress_consumer import Move, advance
from order_writer.saga import orders
from order_writer.saga.decision_batch import Record
from order_writer.unit_of_work import UnitOfWork, UnitsOfWork, columns
from stampede_schemas.codec import decode_command
from stampede_schemas.identifiers import Millis
from stampede_schemas.order_commands import CancelProductRequested, CancelRequested, PaymentReported, RefundReported
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS

COMMANDS_PER_TRANSACTION_MAX = 500
COMMAND_BYTES_MAX = 16 * 1024  # the longest that we write has some 2,000; it may have to wait in Postgres
SWEEP_EVERY_S = 1.0
PENDING_S_MAX = 600.0
LOCK_PROGRESS = "SELECT 1 FROM command_progress WHERE partition = ANY($1::int[]) ORDER BY partition FOR UPDATE"
ADVANCE = """
UPDATE command_progress p SET next_offset = m.next_offset
FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS m (partition, was, next_offset)
WHERE p.partition = m.partition AND p.next_offset = m.was
RETURNING p.partition"""
KEEP_PENDING = """
INSERT INTO pending_commands (command_id, purchase_id, payload, appended_at, partition, source_offset)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::timestamptz[], $5::int[], $6::bigint[])
ON CONFLICT (command_id) DO UPDATE SET parked_at = excluded.parked_at"""
CANCEL_PRODUCTS = """
INSERT INTO product_cancellations (request_id, product_id, requests_end)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) ON CONFLICT (request_id) DO NOTHING"""
# `parked_at` is the start of the transaction that was given the command, so it lies after each decision that its sender
# can have seen. It is compared with `applied.until` because both are Postgres' clock; `appended_at` is the broker's.
TAKE_DECIDED = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands c JOIN purchases u USING (purchase_id)
  WHERE u.status <> 'rejected'
     OR parked_at < (SELECT until FROM applied WHERE topic = $2 AND partition = u.partition)
  LIMIT $1 FOR UPDATE OF c SKIP LOCKED)
RETURNING payload, partition, source_offset, appended_at"""
TAKE_OVERDUE = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands c
  WHERE parked_at + $2 * interval '1 second'
        < (SELECT min(until) FROM applied WHERE topic = $3 HAVING count(*) = $4)
    AND NOT EXISTS (SELECT FROM purchases u WHERE u.purchase_id = c.purchase_id)
  ORDER BY parked_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING payload, partition, source_offset, appended_at"""
OfPurchase = PaymentReported | RefundReported | CancelRequested
_log = logging.getLogger(__name__)


class Commands:
    """See `progress_consumer.BatchHandler`: every record counts, and the progress is an offset alone."""

    topic = ORDER_COMMANDS.name
    shards_max = 1
    begin = """
    INSERT INTO command_progress (partition, next_offset, topic_id)
    SELECT unnest($1::int[]), 0, $2 ON CONFLICT (partition) DO NOTHING"""
    stored = "SELECT partition, next_offset, topic_id FROM command_progress WHERE partition = ANY($1::int[])"

    def __init__(self, units: UnitsOfWork) -> None:
        self._units = units

    def progress_of(self, row: asyncpg.Record, _committed: int) -> Progress:
        """A restored database may be behind the group: `recover` lets commands be applied again."""
        return Progress(row["next_offset"])

    def new_batch(self) -> list[Record]:
        """In the order of their arrival."""
        return []

    def is_full(self, batch: list[Record]) -> bool:
        """By commands; one that is too large ends its batch, so that a transaction has a single large dead letter."""
        return len(batch) >= COMMANDS_PER_TRANSACTION_MAX or (bool(batch) and len(batch[-1].value) > COMMAND_BYTES_MAX)

    def add(self, batch: list[Record], _progress: Progress, record: Record) -> Progress:
        """Add any record: one that is no command becomes a dead letter."""
        batch.append(record)
        return Progress(record.offset + 1)

    async def apply(self, batch: list[Record], moves: Mapping[int, Move]) -> None:
        """Handle, keep or dead-letter the commands that came, in one transaction."""
        async with self._units.open() as unit:
            rows = [(partition, move.was, move.to.next_offset) for partition, move in moves.items()]
            await advance(unit.connection, LOCK_PROGRESS, ADVANCE, rows)
            await _handle(unit, batch, skip_rejected=True)


async def sweep_pending(units: UnitsOfWork) -> bool:
    """Handle pending commands whose row is decided by now, dead-letter those whose row will not come.

    Returns whether there is more. Several sweeps may run at once: each takes what the others have not locked.
    """
    async with units.open() as unit:
        decided = await unit.connection.fetch(TAKE_DECIDED, COMMANDS_PER_TRANSACTION_MAX, DECISIONS.name)
        await _handle(unit, [Record(*row) for row in decided])
    async with units.open() as unit:
        limits = (COMMANDS_PER_TRANSACTION_MAX, PENDING_S_MAX, DECISIONS.name, DECISIONS.partitions)
        overdue = await unit.connection.fetch(TAKE_OVERDUE, *limits)
        for record in (Record(*row) for row in overdue):
            _dead_letter(unit, record, "no_such_purchase")
            command = _read(record.value)
            if isinstance(command, PaymentReported) and command.outcome == "approved":
                unit.voids[command.purchase_id] = True
    return max(len(decided), len(overdue)) == COMMANDS_PER_TRANSACTION_MAX


async def _handle(unit: UnitOfWork, arrived: Sequence[Record], *, skip_rejected: bool = False) -> None:
    commands: list[tuple[OfPurchase, orders.Message, Record]] = []
    products: list[tuple[str, str, int]] = []
    for record in arrived:
        command = _read(record.value)
        match command:
            case None:
                _dead_letter(unit, record, "not_a_command")
            case CancelProductRequested(requests_end=int(end)):
                products.append((command.request_id, command.product_id, end))
            case CancelProductRequested():
                _dead_letter(unit, record, "no_place")
            case _:
                commands.append((command, message_of(command), record))
    messages = [(command.purchase_id, message) for command, message, _ in commands]
    without_row = await unit.handle(messages, skip_rejected=skip_rejected)
    pending = {
        _id_of(command): (_id_of(command), command.purchase_id, it.value, it.appended_at, it.partition, it.offset)
        for command, _, it in commands
        if command.purchase_id in without_row
    }
    if pending:
        await unit.connection.execute(KEEP_PENDING, *columns(list(pending.values()), 6))
    if products:
        await unit.connection.execute(CANCEL_PRODUCTS, *columns(products, 3))
    for refused, reason in unit.refused:
        for _, message, record in commands:
            if message is refused:
                _dead_letter(unit, record, reason)


def message_of(command: OfPurchase) -> orders.Message:
    """The command as a message to the saga."""
    match command:
        case PaymentReported(outcome="approved"):
            return orders.PaymentApproved(command.amount_minor, command.currency)
        case PaymentReported():
            return orders.PaymentDeclined()
        case RefundReported():
            return orders.PaymentVoided(True, command.amount_minor, command.currency)
        case CancelRequested():
            return orders.CancelAsked(command.actor)


def _read(value: bytes) -> OfPurchase | CancelProductRequested | None:
    """None: no command, a far too long one, or one with a NUL, which no text in Postgres can hold."""
    if len(value) > COMMAND_BYTES_MAX:
        return None
    try:
        command = decode_command(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    of = command.product_id if isinstance(command, CancelProductRequested) else command.purchase_id
    return None if "\0" in of else command


def _id_of(command: OfPurchase) -> str:
    own = command.request_id if isinstance(command, CancelRequested) else command.report_id
    return f"{type(command).__name__}:{command.purchase_id}:{own}"


def _dead_letter(unit: UnitOfWork, record: Record, reason: str) -> None:
    _log.error("a command can never be acted on (%s): dead letter", reason)
    seen = Millis(int(record.appended_at.timestamp() * 1000))
    unit.dead_letter(ORDER_COMMANDS.name, record, reason, first_seen_ms=seen)
