"""The order-writer with crash points around its COMMIT and its relay: `python -m tests.chaos.builds.order_writer`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from confluent_kafka import Consumer

from order_writer import __main__ as program
from order_writer import app
from order_writer.consume.progress_consumer import ProgressConsumer
from order_writer.outbox.messages import Outgoing
from order_writer.outbox.relay import Relay
from order_writer.payments.payer import Outcome, Payer
from order_writer.unit_of_work import UnitOfWork, UnitsOfWork
from stampede_schemas.topics import DECISIONS
from tests.chaos.builds.points import Points, exchange

POINTS = Points()


class DyingUnitsOfWork(UnitsOfWork):
    """Dies when everything of a transaction is written but its COMMIT."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[UnitOfWork]:
        """See UnitsOfWork."""
        async with super().open() as unit:
            close = unit.close

            async def dying() -> None:
                await close()
                POINTS.passed("before COMMIT")

            unit.close = dying  # type: ignore[method-assign]
            yield unit


class DyingConsumer(ProgressConsumer[Any]):
    """Dies when a batch of decisions is committed and its group offset is not."""

    def _commit(self, client: Consumer, *, last: bool = False) -> None:
        if self._reached and self._topic == DECISIONS.name:
            POINTS.passed("after COMMIT, before the offset")
        super()._commit(client, last=last)


class DyingRelay(Relay):
    """Dies with rows of the outbox in hand."""

    def _send(self, rows: list[asyncpg.Record]) -> dict[int, list[Outgoing]]:
        POINTS.passed("before the outbox is sent")
        left = super()._send(rows)
        POINTS.passed("after the outbox is sent")
        return left


class DyingPayer(Payer):
    """Dies when the provider has answered and nobody has written it down."""

    async def _write(self, outcomes: list[Outcome]) -> None:
        POINTS.passed("before an answer is stored")
        await super()._write(outcomes)


def main() -> None:
    """The shipped program, with mortal parts."""
    exchange(app, UnitsOfWork=DyingUnitsOfWork, ProgressConsumer=DyingConsumer, Relay=DyingRelay, Payer=DyingPayer)
    program.main()


if __name__ == "__main__":
    main()
