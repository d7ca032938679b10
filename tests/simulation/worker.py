"""A worker of the simulated world, and what it waits for."""

from collections import deque
from collections.abc import Generator

from inventory.effects import DeadLetter, InFlightRecord
from inventory.loading import Loaded, Query, QueryResult
from inventory.protocol import PartitionProcessor


class Worker:
    """One process: its `PartitionProcessor`, and everything it waits for. Dead ones keep what is still on its way."""

    __slots__ = (
        "acked", "alive", "cools_down", "cut", "dead_letters", "ends", "loadings", "partition", "pipe", "position",
        "reads", "reports", "writes",
    )  # fmt: skip

    def __init__(self, partition: PartitionProcessor) -> None:
        self.partition = partition
        self.alive = True
        self.cools_down = False
        self.position = 0  # of the stream
        self.acked = -1
        self.cut = -1  # die after so many effects
        self.pipe: deque[tuple[InFlightRecord, bool]] = deque()  # and whether its report was already given
        self.reports: deque[tuple[int, int | None, str | None]] = deque()
        self.loadings: list[tuple[int, Generator[Query, QueryResult, Loaded], Query]] = []
        self.reads: deque[tuple[int, int, int]] = deque()
        self.dead_letters: deque[tuple[int, list[DeadLetter]]] = deque()
        self.writes: deque[tuple[str, list[bytes], list[int]]] = deque()  # a commit record has no name
        self.ends: tuple[int, int] | None = None
