"""The inventory with crash points, other rules, and a group of its own: `python -m tests.chaos.builds.inventory`."""

import os
import threading
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from inventory import __main__ as program
from inventory import app
from inventory.answering import LogReader
from inventory.effects import Flight
from inventory.loading import Answer, Ask, Loaded, Loading
from inventory.protocol import Partition
from inventory.worker import Worker
from stampede_schemas.identifiers import Load
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
    ask: Ask = next(loading)
    while True:
        answer: Answer = yield ask
        POINTS.passed("loading")
        try:
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
                self.partitions[number] = Partition(
                    number,
                    self._topic_ids,
                    lambda: Load(token_hex(16)),
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

    def _produce(self, number: int, flights: list[Flight]) -> None:
        POINTS.passed("decided")
        super()._produce(number, flights)
        if POINTS.armed_at("produced"):
            time.sleep(ON_ITS_WAY_S)
            POINTS.passed("produced")

    def _landed(self, number: int, flight: Flight, offset: int) -> None:
        POINTS.passed("reported")
        super()._landed(number, flight, offset)

    def _acknowledge(self, number: int, source_offset: int) -> None:
        super()._acknowledge(number, source_offset)
        POINTS.passed("acked")

    def _send(self, topic: str, partition: int, value: bytes, landed: Callable[[int], None], *rest: Any) -> None:
        super()._send(topic, partition, value, landed, *rest)
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
