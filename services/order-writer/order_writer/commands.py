"""What the commands of `order-commands` do to orders, in one transaction with the progress of reading them.

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
from order_writer import saga
from order_writer.database import columns
from order_writer.domain import Record
from order_writer.store import Move, ProgressConflict
from order_writer.unit import Money, Unit, Units
from stampede_schemas.codec import decode_command
from stampede_schemas.identifiers import Millis
from stampede_schemas.orders import CancelProductRequested, CancelRequested, PaymentReported, RefundReported
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS

COMMANDS_PER_TRANSACTION_MAX = 500
SWEEP_EVERY_S = 1.0
PARKED_S_MAX = 600.0
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
# `parked_at` is the start of the transaction that was given the command, so it lies after each decision that its sender
# can have seen. It is compared with `applied.until` because both are Postgres' clock; `appended_at` is the broker's.
UNPARK = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands c JOIN purchases u USING (purchase_id)
  WHERE u.status <> 'rejected'
     OR parked_at < (SELECT until FROM applied WHERE topic = $2 AND partition = u.partition)
  LIMIT $1 FOR UPDATE OF c SKIP LOCKED)
RETURNING payload, partition, source_offset, appended_at"""
GIVE_UP = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands c
  WHERE parked_at + $2 * interval '1 second'
        < (SELECT min(until) FROM applied WHERE topic = $3 HAVING count(*) = $4)
    AND NOT EXISTS (SELECT FROM purchases u WHERE u.purchase_id = c.purchase_id)
  ORDER BY parked_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING payload, partition, source_offset, appended_at"""
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

    def __init__(self, units: Units) -> None:
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
        """Whatever it holds: what is no command becomes a dead letter."""
        del progress
        batch.append(record)
        return Progress(record.offset + 1)

    async def apply(self, batch: list[Record], moves: Mapping[int, Move]) -> None:
        """One transaction."""
        async with self._units.open() as unit:
            await apply(unit, {partition: (move.was, move.to.next_offset) for partition, move in moves.items()}, batch)


async def apply(unit: Unit, moves: Mapping[int, tuple[int, int]], arrived: Sequence[Record]) -> None:
    """Tell the saga, park or give up what has come. `moves`: by partition, the progress before and after.

    Raises:
        ProgressConflict: another writer has moved a partition on; nothing of it may be committed.
    """
    await unit.connection.execute(LOCK_PROGRESS, list(moves))
    rows = [(partition, was, to) for partition, (was, to) in moves.items()]
    if await unit.connection.execute(ADVANCE, *columns(rows, 3)) != f"UPDATE {len(rows)}":
        raise ProgressConflict
    await _tell(unit, arrived, skip_rejected=True)


async def _tell(unit: Unit, arrived: Sequence[Record], *, skip_rejected: bool = False) -> None:
    told: list[tuple[OfPurchase, saga.Message, Record]] = []
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


async def sweep_pending(units: Units) -> bool:
    """Tell pending commands whose row is decided by now, give up those whose row will not come; whether there is more.

    Several sweeps may run at once: each takes what the others have not locked.
    """
    async with units.open() as unit:
        met = await unit.connection.fetch(UNPARK, COMMANDS_PER_TRANSACTION_MAX, DECISIONS.name)
        await _tell(unit, [Record(*row) for row in met])
    async with units.open() as unit:
        limits = (COMMANDS_PER_TRANSACTION_MAX, PARKED_S_MAX, DECISIONS.name, DECISIONS.partitions)
        alone = [Record(*row) for row in await unit.connection.fetch(GIVE_UP, *limits)]
        money = Money()
        for it in alone:
            _give_up(unit, it, "no_such_purchase")
            command = _read(it.value)
            if isinstance(command, PaymentReported) and command.outcome == "approved":
                money.voids[command.purchase_id] = REPORTED, True
        await unit.pay(money)
    return max(len(met), len(alone)) == COMMANDS_PER_TRANSACTION_MAX


def message_of(command: OfPurchase) -> saga.Message:
    """What the saga hears."""
    match command:
        case PaymentReported(outcome="approved"):
            return saga.PaymentApproved(command.amount_minor, command.currency)
        case PaymentReported():
            return saga.PaymentDeclined()
        case RefundReported():
            return saga.PaymentVoided(True, command.amount_minor, command.currency)
        case CancelRequested():
            return saga.CancelAsked(command.actor)


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


def _give_up(unit: Unit, it: Record, reason: str) -> None:
    _log.error("a command can never be acted on (%s): dead letter", reason)
    seen = Millis(int(it.appended_at.timestamp() * 1000))
    unit.bury(ORDER_COMMANDS.name, it, reason, first_seen_ms=seen)
