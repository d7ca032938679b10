"""A request on its way to the log, and what may become of it. Must not know HTTP, Kafka or Redis."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from gateway.admission.decide import Known
from ratelimit.limiter import Subject
from service.problem_details import Problem
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import AnyRequest, PurchaseRequested

UNSETTLED_S_MAX = 600.0  # by then a record that was never acknowledged will not land any more
UNSETTLED_MAX = 50_000


class Replayed:
    """It was accepted before, and its first answer holds."""


REPLAYED: Final = Replayed()
Answer = Position | Replayed | Problem


class Send(Struct, eq=False):
    """A request on its way to the log; `done` gets its answer. Without `subject` it is an operator's.

    `entered` is when it came, `arrived` when its latest repeat did; `allowed`: by the limits.
    """

    request: AnyRequest
    subject: Subject | None
    partition: int
    entered: float
    arrived: float
    done: asyncio.Future[Answer]
    known: Known = "nothing"
    allowed: bool = False
    row_read: bool = False
    joined: list[asyncio.Future[Answer]] = []

    @property
    def key(self) -> str:
        """A purchase is in flight once; operators' requests have no joins, and each is one of its own."""
        return self.purchase.purchase_id if self.subject else str(id(self))

    @property
    def purchase(self) -> PurchaseRequested:
        """The request of a buyer: there is no other kind."""
        assert isinstance(self.request, PurchaseRequested)
        return self.request

    def share(self) -> "asyncio.Future[Answer]":
        """A future of the caller's own that gets the same answer: cancelling it leaves the send alone."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.joined.append(future)
        return future

    def join(self, now_s: float) -> "asyncio.Future[Answer]":
        """The same for a repeat: the view must cover its arrival too, which may be behind that of the first."""
        self.arrived = now_s
        return self.share()

    def answer(self, answer: Answer) -> None:
        """Give the answer to the caller and to those who joined, unless they are gone."""
        for future in (self.done, *self.joined):
            if not future.done():
                future.set_result(answer)


class Unsettled:
    """Purchases that the log did not acknowledge in time: they may stand there all the same, or land later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, tuple[str, float]] = {}  # by purchase id: fingerprint, and until when it may land

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, request: PurchaseRequested) -> None:
        """It may land from now on for UNSETTLED_S_MAX."""
        self._until.pop(request.purchase_id, None)
        self._until[request.purchase_id] = request.fingerprint, self._clock() + UNSETTLED_S_MAX
        if len(self._until) > UNSETTLED_MAX:
            del self._until[next(iter(self._until))]

    def fingerprint(self, purchase_id: str) -> str | None:
        """The fingerprint of the request that may still land; None: there is none."""
        fingerprint, until = self._until.get(purchase_id, (None, 0.0))
        if until > self._clock():
            return fingerprint
        self._until.pop(purchase_id, None)
        return None
