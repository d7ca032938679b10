"""The order-writer with a bug: `python -m tests.planted.builds.order_writer`."""

import itertools
import os
import signal
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from order_writer import __main__ as program
from order_writer import unit_of_work
from order_writer.consume import decisions
from order_writer.consume.progress_consumer import Move
from order_writer.endings import product_cancellation
from order_writer.outbox.messages import Outgoing, releases
from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch
from order_writer.unit_of_work import UnitOfWork
from stampede_schemas.decisions import Rejected, Reserved
from stampede_schemas.identifiers import Position, ProductId, PurchaseId
from tests.planted.builds.planting import exchange, for_the_first_time, plant
from tests.simulation.mutants import FirstCopyCounts

DIES_AT_BATCH = 3
_advance, _react, _cancelled, _close = decisions._advance, orders.react, orders._cancelled, UnitOfWork.close


class AsksAnotherPrice(Batch):
    """Every row holds a price of its own."""

    def _outcome(self, decision: Reserved | Rejected, position: Position) -> None:
        if isinstance(decision, Reserved):
            decision = replace(decision, unit_price_minor=decision.unit_price_minor + 1)
        super()._outcome(decision, position)


class ForgetsRejections(Batch):
    """A no is not written down."""

    def _outcome(self, decision: Reserved | Rejected, position: Position) -> None:
        if isinstance(decision, Reserved):
            super()._outcome(decision, position)


class ShowsOneMore(Batch):
    """The catalogue shows a unit that is not there."""

    def _left(self, partition: int, source_offset: int, product_id: ProductId, left: int, added: int = 0) -> None:
        super()._left(partition, source_offset, product_id, left + 1, added)


_batches = itertools.count(1)


async def _progress_first(opened: UnitOfWork, moves: Mapping[int, Move], batch: Batch) -> dict[PurchaseId, int]:
    """Commits how far it has read before what it has read, and once the process ends in between."""
    published = await _advance(opened, moves, batch)
    await opened.connection.execute("COMMIT")
    if next(_batches) >= DIES_AT_BATCH and for_the_first_time("death"):
        os.kill(os.getpid(), signal.SIGKILL)
    return published


def _deaf_to_returns(purchase: orders.Purchase, message: orders.Message) -> tuple[orders.Effect, ...]:
    return () if isinstance(message, orders.StockReleased) else _react(purchase, message)


def _elsewhere(effects: list[orders.RequestRelease]) -> list[Outgoing]:
    def moved(give: orders.RequestRelease) -> orders.RequestRelease:
        partition, offset, index = give.reservation.partition, give.reservation.offset, give.reservation.index
        return replace(give, reservation=Position(partition, offset + 1, index))

    return releases([moved(give) for give in effects])


def _no_releases(_effects: list[orders.RequestRelease]) -> list[Outgoing]:
    return []


def _whenever_reserved(purchase: orders.Purchase, message: orders.CancelAsked) -> tuple[orders.Effect, ...]:
    return _cancelled(purchase, replace(message, requests_end=None))


def _judge_when_read() -> None:
    """What is reserved when a cancellation is read is meant by it, wherever the log stood when it was sent."""
    anywhere = product_cancellation.ORDERS.replace("source_offset < $3", "$3::bigint >= 0")
    exchange(product_cancellation, ORDERS=anywhere)
    exchange(orders, _cancelled=_whenever_reserved)


async def _no_voids(opened: UnitOfWork) -> None:
    opened.voids.clear()
    await _close(opened)


BUGS: dict[str, Callable[[], None]] = {
    "another price in the row": lambda: exchange(decisions, Batch=AsksAnotherPrice),
    "progress is committed before its rows": lambda: exchange(decisions, _advance=_progress_first),
    "a rejection leaves no row": lambda: exchange(decisions, Batch=ForgetsRejections),
    "a void decision is applied": lambda: exchange(decisions, CountingReader=FirstCopyCounts),
    "the catalogue shows one unit too many": lambda: exchange(decisions, Batch=ShowsOneMore),
    "the return of units is ignored": lambda: exchange(orders, react=_deaf_to_returns),
    "a declined payment releases nothing": lambda: exchange(unit_of_work, releases=_no_releases),
    "a cancelled order is not refunded": lambda: exchange(UnitOfWork, close=_no_voids),
    "a cancellation is judged when it is read": _judge_when_read,
    "a release names another position": lambda: exchange(unit_of_work, releases=_elsewhere),
}


def main() -> None:
    """The shipped program with a broken part."""
    plant("order-writer", BUGS)
    program.main()


if __name__ == "__main__":
    main()
