"""The inventory with crash points, other rules, and a group of its own: `python -m tests.chaos.builds.inventory`."""

import os
import threading
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from inventory import __main__ as program
from inventory import app
from inventory.effects import InFlightRecord
from inventory.loading import Loaded, Loading, Query, QueryResult, SnapshotsUnreadable
from inventory.log_reader import LogReader
from inventory.protocol import PartitionProcessor
from inventory.worker import Worker
from stampede_schemas.identifiers import WriterEpoch
from stampede_schemas.topics import STOCK_SNAPSHOTS
from tests.chaos.builds.points import BOUND, GROUP, Points, exchange
from tests.chaos.builds.rules import other_rules

SNAPSHOT_EVERY = 60  # decisions: every load begins with one, and some are cut short
ON_ITS_WAY_S = 0.05  # long enough for a record to reach the broker while nobody polls for its report

POINTS = Points()


class DyingReader(LogReader):
    """Dies between two answers to a load."""

    def finish(self, partition: int, loading: Loading) -> Loaded:
        """See LogReader."""
        return super().finish(partition, _dying(loading))


def _dying(loading: Loading) -> Loading:
    ask: Query = next(loading)
    while True:
        try:
            try:
                answer: QueryResult = yield ask
            except SnapshotsUnreadable as unreadable:
                ask = loading.throw(unreadable)
                continue
            POINTS.passed("loading")
            ask = loading.send(answer)
        except StopIteration as end:
            loaded: Loaded = end.value
            return loaded


class DyingWorker(Worker):
    """Dies before or after what a worker does, by the name of what was done last."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts | {"snapshot_due": lambda decided, _remembered: decided >= SNAPSHOT_EVERY})

    def assigned(self, numbers: set[int]) -> None:
        """See Worker."""
        POINTS.passed("rebalancing")
        if POINTS.other_rules():
            for number in numbers - self.partitions.keys():
                self.partitions[number] = PartitionProcessor(
                    number,
                    self._topic_ids,
                    lambda: WriterEpoch(token_hex(16)),
                    rules=other_rules,
                    snapshot_due=self._snapshot_due,
                )
        super().assigned(numbers)

    def revoked(self, numbers: set[int]) -> None:
        """See Worker."""
        super().revoked(numbers)
        POINTS.passed("rebalancing")

    async def deliver(self, event: Any) -> None:
        """See Worker."""
        POINTS.passed("fetched")
        await super().deliver(event)

    def _produce(self, number: int, records: list[InFlightRecord]) -> None:
        POINTS.passed("decided")
        super()._produce(number, records)
        if POINTS.armed_at("produced"):
            time.sleep(ON_ITS_WAY_S)
            POINTS.passed("produced")

    def _reported(self, number: int, record: InFlightRecord, offset: int) -> None:
        POINTS.passed("reported")
        super()._reported(number, record, offset)

    def _acknowledge(self, number: int, source_offset: int) -> None:
        super()._acknowledge(number, source_offset)
        POINTS.passed("acked")

    def _send(
        self, topic: str, partition: int, value: bytes, on_ack: Callable[[int], None], *rest: Any, **more: Any
    ) -> None:
        super()._send(topic, partition, value, on_ack, *rest, **more)
        if topic == STOCK_SNAPSHOTS.name and POINTS.armed_at("snapshot half written"):
            time.sleep(ON_ITS_WAY_S)
            POINTS.passed("snapshot half written")


def _end_with_parent() -> None:
    os.read(0, 1)  # nobody writes: it returns when the other end is closed
    os._exit(1)


def main() -> None:
    """The shipped program, with a mortal worker."""
    exchange(app, Worker=DyingWorker, LogReader=DyingReader, GROUP=os.environ.get(GROUP, app.GROUP))
    if BOUND in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    program.main()


if __name__ == "__main__":
    main()
