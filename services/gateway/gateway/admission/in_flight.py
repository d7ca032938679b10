"""The sends of purchases that have no answer yet, and those that ended without an acknowledgement.

Together with the memory they tell what this gateway knows of a purchase (`Known`). Must not know HTTP, Kafka or Redis.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway.admission.decide import Known
from gateway.auth.ids import partition_of_product
from gateway.read_side.purchase_memory import PurchaseMemory
from gateway.read_side.purchase_state import Accepted, Answered
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


class Send:
    """A request on its way to the log; `done` gets its answer. Without `subject` it is an operator's."""

    __slots__ = (
        "allowed", "arrived", "done", "entered", "joined", "key", "known", "partition", "request", "row_asked",
        "subject",
    )  # fmt: skip

    def __init__(self, request: AnyRequest, subject: Subject | None, now_s: float) -> None:
        self.request, self.subject = request, subject
        # Operators' requests have no joins: each send is one of its own.
        self.key = request.purchase_id if isinstance(request, PurchaseRequested) and subject else str(id(self))
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.joined: list[asyncio.Future[Answer]] | None = None
        self.partition = partition_of_product(request.product_id)
        self.entered = self.arrived = now_s
        self.known: Known = "nothing"
        self.row_asked = False
        self.allowed = subject is None  # by the limits

    @property
    def purchase(self) -> PurchaseRequested:
        """The request of a buyer: there is no other kind."""
        assert isinstance(self.request, PurchaseRequested)
        return self.request

    def share(self) -> "asyncio.Future[Answer]":
        """A future of the caller's own that gets the same answer: cancelling it leaves the send alone."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.joined = [*(self.joined or ()), future]
        return future

    def join(self, now_s: float) -> "asyncio.Future[Answer]":
        """The same for a repeat: the view must cover its arrival too, which may be behind that of the first."""
        self.arrived = now_s
        return self.share()

    def answer(self, answer: Answer) -> None:
        """Tell the caller and those who joined, unless they are gone."""
        if not self.done.done():
            self.done.set_result(answer)
        for future in self.joined or ():
            if not future.done():
                future.set_result(answer)


class InFlight:
    """By purchase id. Also the one place that says what is known of a purchase here."""

    def __init__(self, memory: PurchaseMemory, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory, self._clock = memory, clock
        self._sends: dict[str, Send] = {}
        self._unsettled: dict[str, tuple[str, float]] = {}  # fingerprint, and until when the record may still land

    def __len__(self) -> int:
        return len(self._sends)

    def sends(self) -> list[Send]:
        """All that have no answer."""
        return list(self._sends.values())

    def of(self, purchase_id: str) -> Send | None:
        """The send of this purchase that is on its way."""
        return self._sends.get(purchase_id)

    def begin(self, send: Send) -> None:
        """It is on its way."""
        self._sends[send.key] = send

    def end(self, send: Send, answer: Answer) -> None:
        """It has its answer."""
        self._sends.pop(send.key, None)
        send.answer(answer)

    def unsettle(self, send: Send) -> None:
        """The log did not acknowledge it in time. It may stand there all the same, or land later."""
        if isinstance(request := send.request, PurchaseRequested):
            self._unsettled.pop(request.purchase_id, None)
            self._unsettled[request.purchase_id] = request.fingerprint, self._clock() + UNSETTLED_S_MAX
            if len(self._unsettled) > UNSETTLED_MAX:
                del self._unsettled[next(iter(self._unsettled))]

    def known(self, request: PurchaseRequested, own: Send | None = None) -> Known:
        """What is known of a purchase; `own` is the send that asks, whose row may have been asked for already."""
        purchase_id, state = request.purchase_id, self._memory.get(request.purchase_id)
        if isinstance(state, Accepted):
            return "accepted" if state.fingerprint == request.fingerprint else "other undecided"
        if state is not None:
            ours = state.mine.fingerprint if isinstance(state, Answered) and state.mine else state.fingerprint
            if ours:
                return "same body" if ours == request.fingerprint else "other body"
        send = self._sends.get(purchase_id)
        if send is not None and send is not own:
            same = send.purchase.fingerprint == request.fingerprint
            return "on its way" if same else "other undecided"
        if self._unsettled and (unsettled := self._still_unsettled(purchase_id)) is not None:
            return "unsettled" if unsettled == request.fingerprint else "other undecided"
        if state is None and not self._memory.ids.may_know(partition_of_product(request.product_id), purchase_id):
            return "nothing"
        # Its row was asked for: what came later is in memory.
        return own.known if own is not None and own.row_asked else "remembered"

    def _still_unsettled(self, purchase_id: str) -> str | None:
        found = self._unsettled.get(purchase_id)
        if found is None or found[1] > self._clock():
            return found[0] if found else None
        del self._unsettled[purchase_id]
        return None
