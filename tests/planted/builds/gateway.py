"""The gateway with a bug: `python -m tests.planted.builds.gateway`."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from uuid import uuid4

from gateway import __main__ as program
from gateway import app
from gateway.admission.batcher import RequestBatcher
from gateway.admission.send import Answer, Send
from gateway.auth.ids import IdentityKey, Subject
from gateway.http import requests
from gateway.http.requests import Headers
from ratelimit.limiter import Limiter, Verdict
from ratelimit.limiter import Subject as Limited
from stampede_schemas.identifiers import Position, ProductId, PurchaseId
from stampede_schemas.requests import PurchaseRequested
from tests.planted.builds.planting import exchange, plant

LATE_S = 0.5
LOST_EVERY = 10
LIMITED_EVERY = 7
_purchase_id = IdentityKey.purchase_id
_check = Limiter.check
_asked = itertools.count()


def _another_id_each_time(
    self: IdentityKey, subject: Subject, method: str, route: str, product_id: ProductId, key: str
) -> PurchaseId:
    return _purchase_id(self, subject, method, route, product_id, f"{key}-{uuid4().hex}")


def _never_waits(_headers: Headers) -> int | None:
    return None


async def _limits_some(self: Limiter, batch: Sequence[Limited]) -> list[Verdict]:
    verdicts = await _check(self, batch)
    return [verdict._replace(allowed=next(_asked) % LIMITED_EVERY != 1) for verdict in verdicts]


class AnswersEarly(RequestBatcher):
    """Says "logged" of what it will hand to the producer in half a second."""

    def _produce(self, partition: int, group: list[Send]) -> None:
        ours = [send for send in group if isinstance(send.request, PurchaseRequested)]
        if not ours:
            super()._produce(partition, group)
            return
        for index, send in enumerate(group):
            self._in_flight.end(send, Position(partition, 0, index))
        asyncio.get_running_loop().call_later(LATE_S, super()._produce, partition, group)


class LosesSome(RequestBatcher):
    """Answers every tenth purchase and logs nothing of it."""

    _numbers = itertools.count()

    async def buy(self, request: PurchaseRequested, subject: Limited) -> Answer:
        """See RequestBatcher."""
        if next(self._numbers) % LOST_EVERY == 1:
            return Position(0, 0, 0)
        return await super().buy(request, subject)


def _answers_early() -> None:
    exchange(app, RequestBatcher=AnswersEarly)
    exchange(requests, wait_seconds=_never_waits)


def _loses_some() -> None:
    exchange(app, RequestBatcher=LosesSome)
    exchange(requests, wait_seconds=_never_waits)


BUGS: dict[str, Callable[[], None]] = {
    "one key gives two purchases": lambda: exchange(IdentityKey, purchase_id=_another_id_each_time),
    "202 before the log has acknowledged": _answers_early,
    "202 for what is not logged": _loses_some,
    "a polite buyer is told 429": lambda: exchange(Limiter, check=_limits_some),
}


def main() -> None:
    """The shipped program with a broken part."""
    plant("gateway", BUGS)
    program.main()


if __name__ == "__main__":
    main()
