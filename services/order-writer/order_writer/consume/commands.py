"""Applies the records of `order-commands`, in one transaction with the progress.

Payment reports, reported refunds and cancellations are told to the saga. One that comes before its row waits in
`pending_commands`: a sweep joins the two each second, so that a command and a row whose transactions missed each other
meet all the same. It is given up only when `decisions` has been applied for ten minutes beyond the moment it came; an
approval among those is voided: the money goes back. A rejected row counts as none until its partition of `decisions`
is applied beyond that moment: the command may be about a later reservation, which is read only after it.
"""

import logging
from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from eventlog.reader import Progress
from order_writer.consume.apply_decisions import Move, ProgressConflict
from order_writer.postgres.pool import columns
from order_writer.saga import orders
from order_writer.saga.decision_batch import Record
from order_writer.unit_of_work import UnitOfWork, UnitsOfWork
from stampede_schemas.codec import decode_command
from stampede_schemas.identifiers import Millis
from stampede_schemas.order_commands import CancelProductRequested, CancelRequested, PaymentReported, RefundReported
from stampede_schemas.topics import ORDER_COMMANDS

COMMANDS_PER_TRANSACTION_MAX = 500
REPORTED = "reported"  # the payment method of what was paid for without a purchase
LOCK_PROGRESS = "SELECT 1 FROM command_progress WHERE partition = ANY($1::int[]) ORDER BY partition FOR UPDATE"
ADVANCE = """
UPDATE command_progress p SET next_offset = m.next_offset
FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS m (partition, was, next_offset)
WHERE p.partition = m.partition AND p.next_offset = m.was"""
PARK = """
INSERT INTO pending_commands (command_id, purchase_id, payload, appended_at, partition, source_offset)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::timestamptz[], $5::int[], $6::bigint[])
ON CONFLICT (command_id) DO UPDATE SET parked_at = excluded.parked_at"""
CANCEL_PRODUCTS = """
INSERT INTO product_cancellations (request_id, product_id)
SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (request_id) DO NOTHING"""
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

    def progress_of(self, row: asyncpg.Record, committed: int) -> Progress:
        """A restored database may be behind the group: `recover` lets commands be applied again."""
        del committed
        return Progress(row["next_offset"])

    def new_batch(self) -> list[Record]:
        """In the order of their arrival."""
        return []

    def is_full(self, batch: list[Record]) -> bool:
        """By commands."""
        return len(batch) >= COMMANDS_PER_TRANSACTION_MAX

    def add(self, batch: list[Record], progress: Progress, record: Record) -> Progress:
        """Add any record: one that is no command becomes a dead letter."""
        del progress
        batch.append(record)
        return Progress(record.offset + 1)

    async def apply(self, batch: list[Record], moves: Mapping[int, Move]) -> None:
        """One transaction."""
        async with self._units.open() as unit:
            await apply(unit, {partition: (move.was, move.to.next_offset) for partition, move in moves.items()}, batch)


async def apply(unit: UnitOfWork, moves: Mapping[int, tuple[int, int]], arrived: Sequence[Record]) -> None:
    """Tell the saga, park or give up what has come. `moves`: by partition, the progress before and after.

    Raises:
        ProgressConflict: another writer has moved a partition on; nothing of it may be committed.
    """
    await unit.connection.execute(LOCK_PROGRESS, list(moves))
    rows = [(partition, was, to) for partition, (was, to) in moves.items()]
    if await unit.connection.execute(ADVANCE, *columns(rows, 3)) != f"UPDATE {len(rows)}":
        raise ProgressConflict
    await _tell(unit, arrived, skip_rejected=True)


async def _tell(unit: UnitOfWork, arrived: Sequence[Record], *, skip_rejected: bool = False) -> None:
    told: list[tuple[OfPurchase, orders.Message, Record]] = []
    products: list[tuple[str, str]] = []
    for it in arrived:
        command = _read(it.value)
        match command:
            case None:
                _give_up(unit, it, "not_a_command")
            case CancelProductRequested():
                products.append((command.request_id, command.product_id))
            case _:
                told.append((command, message_of(command), it))
    heard = [(command.purchase_id, message) for command, message, _ in told]
    rowless = await unit.tell(heard, skip_rejected=skip_rejected)
    parked = {
        _id_of(command): (_id_of(command), command.purchase_id, it.value, it.appended_at, it.partition, it.offset)
        for command, _, it in told
        if command.purchase_id in rowless
    }
    if parked:
        await unit.connection.execute(PARK, *columns(list(parked.values()), 6))
    if products:
        await unit.connection.execute(CANCEL_PRODUCTS, *columns(products, 2))
    for refused in unit.refused:
        for _, message, it in told:
            if message is refused.message:
                _give_up(unit, it, refused.reason)


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
    """None: no command, or one with a NUL, which no text in Postgres can hold."""
    try:
        command = decode_command(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    of = command.product_id if isinstance(command, CancelProductRequested) else command.purchase_id
    return None if "\0" in of else command


def _id_of(command: OfPurchase) -> str:
    own = command.request_id if isinstance(command, CancelRequested) else command.report_id
    return f"{type(command).__name__}:{command.purchase_id}:{own}"


def _give_up(unit: UnitOfWork, it: Record, reason: str) -> None:
    _log.error("a command can never be acted on (%s): dead letter", reason)
    seen = Millis(int(it.appended_at.timestamp() * 1000))
    unit.dead_letter(ORDER_COMMANDS.name, it, reason, first_seen_ms=seen)
