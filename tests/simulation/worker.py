"""A worker of the simulated world, and what it waits for."""

from collections import deque
from collections.abc import Generator

from inventory.effects import Flight, Letter
from inventory.loading import Answer, Ask, Loaded
from inventory.protocol import Partition


class Worker:
    """One process: its `Partition`, and everything it waits for. Dead ones keep what is still on its way."""

    __slots__ = (
        "acked", "alive", "burials", "cut", "ends", "loadings", "partition", "pipe", "position", "reads", "reports",
        "stays_out", "writes",
    )  # fmt: skip

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.alive = True
        self.stays_out = False
        self.position = 0  # of the stream
        self.acked = -1
        self.cut = -1  # die after so many effects
        self.pipe: deque[tuple[Flight, bool]] = deque()  # and whether its report was already given
        self.reports: deque[tuple[int, int | None, str | None]] = deque()
        self.loadings: list[tuple[int, Generator[Ask, Answer, Loaded], Ask]] = []
        self.reads: deque[tuple[int, int, int]] = deque()
        self.burials: deque[tuple[int, list[Letter]]] = deque()
        self.writes: deque[tuple[str, list[bytes], list[int]]] = deque()  # a commit record has no name
        self.ends: tuple[int, int] | None = None
