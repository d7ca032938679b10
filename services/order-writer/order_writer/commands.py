"""The consumer of `order-commands`: payment reports and cancellations, told to the same saga.

First form: at least once by group offset, which the saga makes harmless. A command that comes before its row waits in
`pending_commands`; a sweep joins the two each second.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaException, Message

from eventlog.kafka import check_passing, consumer
from order_writer import saga
from order_writer.database import columns, pause, retry_outages
from order_writer.metrics import Metrics
from order_writer.outgoing import dead_letter
from order_writer.unit import Unit, Units
from order_writer.writer import member_settings
from stampede_schemas.codec import decode_command
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.orders import CancelProductRequested, CancelRequested, PaymentReported, RefundReported
from stampede_schemas.topics import ORDER_COMMANDS

COMMANDS_PER_TRANSACTION_MAX = 500
READ_WAIT_S = 0.1
SWEEP_EVERY_S = 1.0

PARK = """
INSERT INTO pending_commands (command_id, purchase_id, payload, appended_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::timestamptz[]) ON CONFLICT (command_id) DO NOTHING"""
UNPARK = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands JOIN purchases USING (purchase_id) LIMIT $1
  FOR UPDATE OF pending_commands SKIP LOCKED)
RETURNING payload, appended_at"""
OfPurchase = PaymentReported | RefundReported | CancelRequested
_log = logging.getLogger(__name__)


class Arrived(NamedTuple):
    """A command's bytes, where it stood (offset -1: it was parked) and when it was appended."""

    value: bytes
    partition: int
    offset: int
    appended_at: datetime


class Commands:
    """One member of the commands' group."""

    def __init__(
        self,
        kafka: str,
        group: str,
        instance: str,
        session_timeout_s: int,
        units: Units,
        metrics: Metrics,
        beat: Callable[[], None],
    ) -> None:
        self._kafka, self._units, self._metrics, self._beat = kafka, units, metrics, beat
        self._client = member_settings(f"{group}-commands", instance, session_timeout_s) | {
            "auto.offset.reset": "earliest"
        }

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until asked to stop."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "commands") as thread:
            client = consumer(self._kafka, **self._client)
            client.subscribe([ORDER_COMMANDS.name])
            try:
                while not stopping.is_set():
                    messages = await loop.run_in_executor(thread, _read, client)
                    self._beat()
                    for message in messages:
                        if (error := message.error()) is not None:
                            check_passing(error, ORDER_COMMANDS.name)
                    if arrived := [_arrived(message) for message in messages if message.error() is None]:
                        await retry_outages(partial(self.handle, arrived), self._beat, stopping, "commands")
                    if arrived and not stopping.is_set():
                        await loop.run_in_executor(thread, _commit, client)
            finally:
                await loop.run_in_executor(thread, client.close)

    async def sweep(self, stopping: asyncio.Event) -> None:
        """Each second, handle the parked commands whose row is there by now."""
        while not stopping.is_set():
            await retry_outages(self.unpark, self._beat, stopping, "parked commands")
            await pause(stopping, SWEEP_EVERY_S)

    async def handle(self, arrived: list[Arrived]) -> None:
        """One transaction: told to the saga, parked, or dead-lettered. Safe to repeat."""
        async with self._units.open() as unit:
            await self._tell(unit, arrived)

    async def unpark(self) -> None:
        """The same for parked commands."""
        async with self._units.open() as unit:
            rows = await unit.connection.fetch(UNPARK, COMMANDS_PER_TRANSACTION_MAX)
            await self._tell(unit, [Arrived(row["payload"], -1, -1, row["appended_at"]) for row in rows])

    async def _tell(self, unit: Unit, arrived: list[Arrived]) -> None:
        heard: list[tuple[PurchaseId, saga.Message]] = []
        commands: list[tuple[OfPurchase, Arrived]] = []
        for it in arrived:
            try:
                command = decode_command(it.value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._give_up(unit, it, "not_a_command")
                continue
            if isinstance(command, CancelProductRequested):
                self._give_up(unit, it, "not_a_command")
                continue
            commands.append((command, it))
            heard.append((command.purchase_id, message_of(command)))
        rowless = await unit.tell(heard)
        parked = [(*_names(c), it.value, it.appended_at) for c, it in commands if c.purchase_id in rowless]
        if parked:
            await unit.connection.execute(PARK, *columns(parked, 4))
        for refused in unit.refused:
            for (_, message), (_, it) in zip(heard, commands, strict=True):
                if message is refused.message:
                    self._give_up(unit, it, refused.reason)

    def _give_up(self, unit: Unit, it: Arrived, reason: str) -> None:
        _log.error("a command can never be acted on (%s): dead letter", reason)
        where = (ORDER_COMMANDS.name, max(it.partition, 0), it.offset)
        unit.bury(dead_letter(*where, reason, it.value, first_seen_ms=unit.now_ms), reason)


def message_of(command: OfPurchase) -> saga.Message:
    """What the saga hears."""
    match command:
        case PaymentReported(outcome="approved"):
            return saga.PaymentApproved(command.amount_minor, command.currency)
        case PaymentReported():
            return saga.PaymentDeclined()
        case RefundReported():
            return saga.PaymentVoided()
        case CancelRequested():
            return saga.CancelAsked(command.actor)


def _names(command: OfPurchase) -> tuple[str, str]:
    """An id of the command that no other kind shares, and the purchase's."""
    own = command.request_id if isinstance(command, CancelRequested) else command.report_id
    return f"{type(command).__name__}:{own}", command.purchase_id


def _arrived(message: Message) -> Arrived:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return Arrived(
        message.value() or b"", partition, offset, datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
    )


def _read(client: Consumer) -> list[Message]:
    return client.consume(COMMANDS_PER_TRANSACTION_MAX, READ_WAIT_S)


def _commit(client: Consumer) -> None:
    try:
        client.commit(asynchronous=False)
    except KafkaException as error:
        _log.info("the offset of commands was not committed, they will be heard again: %s", error)
