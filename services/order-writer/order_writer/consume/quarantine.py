"""Values that Postgres will never take: found by bisecting, kept as a placeholder, given back, sent as a dead letter.

An outage is waited for; a row that no waiting helps must not hold its partition up, nor take its neighbours with it.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
import msgspec
from msgspec.structs import replace

from eventlog.reader import LogBroken
from order_writer.postgres.pool import Connection, DatabaseWrong, describe
from order_writer.saga import orders
from order_writer.saga.decision_batch import Entry, Record, Row, entry_of
from order_writer.unit_of_work import UnitOfWork
from stampede_schemas.codec import decode_envelope
from stampede_schemas.identifiers import ProductId
from stampede_schemas.topics import DECISIONS

REFUSED_MAX = 100  # of one batch: a wrong schema must not give a whole sale back
NUMBERS_CONSTRAINT = "reservation_numbers_are_unique"
# Of SQLSTATE: a value that its column cannot hold, and a constraint.
_CLASSES = ("22", "23")
_raws = msgspec.json.Decoder(list[msgspec.Raw])
T = TypeVar("T")
_log = logging.getLogger(__name__)


class PartitionBroken(LogBroken):
    """The fold of one partition is broken: it must not be applied any further, the others may."""

    def __init__(self, partition: int, sentence: str) -> None:
        super().__init__(sentence)
        self.partition = partition


def is_row_error(error: BaseException) -> bool:
    """Whether some value is at fault, so that the same rows fail for ever."""
    # The driver's own refusals (a number that does not fit its column) carry 22000.
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith(_CLASSES)


async def bisect(
    connection: Connection, items: list[T], write: Callable[[list[T]], Awaitable[None]]
) -> list[tuple[T, Exception]]:
    """Write all items that can be written, by halves in savepoints; the refused ones, each with its error.

    Raises:
        DatabaseWrong: so many are refused that it cannot be their fault.
    """
    refused: list[tuple[T, Exception]] = []
    parts = [items] if items else []
    while parts:
        part = parts.pop()
        try:
            async with connection.transaction():
                await write(part)
        except Exception as error:
            if not is_row_error(error):
                raise
            middle = len(part) // 2
            if middle:
                parts += [part[middle:], part[:middle]]  # in their order: the first half is next
                continue
            refused.append((part[0], error))
            if len(refused) > REFUSED_MAX:
                raise DatabaseWrong(
                    f"Postgres refuses more than {REFUSED_MAX} rows of one batch, the last with: {describe(error)}. "
                    "That is not the rows' fault, and nothing was released: is it another schema, or a new constraint?"
                ) from None
    return refused


def placeholder_of(entry: Entry) -> Entry:
    """The placeholder of a refused row: its buyer, its position, and the end that the saga decided for it."""
    decision, ended = entry.row.decision, entry_of(entry.row, entry.published, orders.RowRefused())
    kept = {name: getattr(decision, name).replace("\0", "\ufffd") for name in ("buyer_id", "product_id", "fingerprint")}
    blank = replace(decision, quantity=1, payment_method="", traceparent=None, **kept)
    return replace(ended, row=replace(entry.row, decision=blank))


def dead_letter_row(unit: UnitOfWork, row: Row, error: BaseException, source: Record) -> None:
    """Keep the decision's own bytes as a dead letter."""
    envelope = decode_envelope(source.value)
    assert envelope is not None
    content = bytes(_raws.decode(envelope.decisions)[row.position.index])
    _dead_letter(unit, source._replace(value=content), "row_error", error, row.position.index)


def dead_letter_change(unit: UnitOfWork, source: Record, product_id: ProductId, error: BaseException) -> None:
    """Keep a record as a dead letter whose change of a product the catalogue cannot hold."""
    _log.error("the catalogue shows an older %s", product_id)
    _dead_letter(unit, source, "product_error", error)


def _dead_letter(unit: UnitOfWork, source: Record, reason: str, error: BaseException, index: int | None = None) -> None:
    where = (DECISIONS.name, source.partition, source.offset)
    _log.error("dead letter (%s) from %s/%d/%d: Postgres says: %s", reason, *where, describe(error))
    unit.dead_letter(DECISIONS.name, source, reason, first_seen_ms=unit.now_ms, index=index)
