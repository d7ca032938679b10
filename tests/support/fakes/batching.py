"""A request batcher over an in-memory log, with limits, a gate, rows and a view that tests set."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from eventlog.producer import RenewedProducer
from gateway.admission.batcher import GATE_S_MAX, RequestBatcher
from gateway.admission.decide import Gate
from gateway.admission.send import Answer
from gateway.metrics import Metrics
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.follower import Waiters
from gateway.read_side.freshness import Freshness
from gateway.read_side.purchase_memory import PurchaseMemory, decided
from gateway.read_side.purchase_state import Purchase
from ratelimit.limiter import Subject
from service.problem_details import Kind, Problem
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import PurchaseRequested
from stampede_schemas.topics import partition_of
from tests.support.builders.gateway import (
    AllowAll,
    EndOfRequests,
    MemoryProducer,
    NoRows,
    OpenGate,
    wanted,
)

BUYER = Subject("ann", "127.0.0.1")
HERE = partition_of("lamp")
AT = Position(HERE, 0, 0)
LONG_S = 20.0
SOLD_OUT: dict[str, Gate] = {"lamp": "sold out"}


class Rig:
    """A batcher over an in-memory log, whose view is fresh as long as `end` is 0.

    With `patient` the gate waits for a fresh view as long as it takes: the test is not about time then.
    """

    def __init__(
        self,
        closed: dict[str, Gate] | None = None,
        rows: Iterable[Purchase] = (),
        *,
        end: int | None = 0,
        rows_away: bool = False,
        patient: bool = False,
    ) -> None:
        self.log, self.limits, self.gate = MemoryProducer(), AllowAll(), OpenGate(closed)
        self.memory, self.waiters, self.requests = PurchaseMemory(), Waiters(), EndOfRequests(end)
        self.rows = NoRows(self.memory, rows, away=rows_away)
        self.freshness = Freshness(self.requests.ends, lambda *_: None)
        producer: RenewedProducer = self.log  # type: ignore[assignment]  # the methods that the batcher uses
        self.batcher = RequestBatcher(
            producer,
            self.limits,  # type: ignore[arg-type]  # as much of them as the batcher uses
            self.gate,  # type: ignore[arg-type]
            self.rows,  # type: ignore[arg-type]
            self.memory,
            self.freshness,
            self.waiters,
            BrokerClock(),
            Metrics(CollectorRegistry()),
            LONG_S if patient else GATE_S_MAX,
        )

    def send(self, purchase: str = "buy", product: str = "lamp", subject: Subject = BUYER) -> "asyncio.Task[Answer]":
        """One purchase."""
        return asyncio.create_task(self.batcher.buy(wanted(purchase, product), subject))

    def send_other(self) -> "asyncio.Task[Answer]":
        """The same purchase with another body."""
        return asyncio.create_task(self.batcher.buy(other_body(), BUYER))

    async def buy(self, count: int, product: str = "lamp", subject: Subject = BUYER) -> list[Answer]:
        """That many purchases at once."""
        return await asyncio.gather(*(self.send(f"buy-{n}", product, subject) for n in range(count)))

    def decide(self, decision: object, at: Position = AT) -> None:
        """The log's decision is applied here."""
        self.memory.decided(decided(decision, at, None))  # type: ignore[arg-type]
        self.waiters.wake(["buy"])


def other_body() -> PurchaseRequested:
    """`buy` with another quantity."""
    return replace(wanted(), quantity=2, fingerprint="g")


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    """The batcher at work."""
    work = rig.batcher.run(), rig.batcher.serve_reports(), rig.freshness.run()
    tasks = [asyncio.create_task(each) for each in work]
    try:
        async with asyncio.timeout(LONG_S):
            yield rig
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def asked(rig: Rig, more: int = 1) -> None:
    """Wait until the end of the log was asked for so many times more: somebody is at the gate by then."""
    wanted = rig.requests.asked + more
    while rig.requests.asked < wanted:  # noqa: ASYNC110 - the questions are counted, not told
        await asyncio.sleep(0.001)


def kinds(*answers: Answer) -> set[Kind]:
    """Which problems are among the answers."""
    return {answer.kind for answer in answers if isinstance(answer, Problem)}
