"""The gateway with a bug: `python -m tests.planted.builds.gateway`."""

import asyncio
import itertools
import sys
from collections.abc import Callable, Sequence
from uuid import uuid4

from gateway import __main__ as program
from gateway import admission, app
from gateway.admission import Headers, IdentityKey, Subject
from gateway.appender import Answer, Appender, Waiting
from gateway.claims import Claims, Ruling
from ratelimit.claim import Claim, Settled
from ratelimit.limiter import Subject as Limited
from stampede_schemas.identifiers import Position, PurchaseId
from stampede_schemas.requests import AnyRequest, PurchaseRequested
from tests.planted.builds.planting import exchange, plant

LATE_S = 0.5
LOST_EVERY = 10
LIMITED_EVERY = 7
_purchase_id = IdentityKey.purchase_id
_check = Claims.check
_asked = itertools.count()


def _another_id_each_time(self: IdentityKey, subject: Subject, method: str, route: str, key: str) -> PurchaseId:
    return _purchase_id(self, subject, method, route, f"{key}-{uuid4().hex}")


def _never_waits(_headers: Headers) -> int | None:
    return None


async def _limits_some(self: Claims, batch: Sequence[Limited], claims: Sequence[Claim]) -> Ruling:
    verdicts, vouched = await _check(self, batch, claims)
    unlucky = [next(_asked) % LIMITED_EVERY == 1 for _ in batch]
    self.settle(
        Settled(c.id, c.fingerprint, c.buyer, "d") for c, limited in zip(claims, unlucky, strict=True) if limited
    )
    told = [v._replace(allowed=not limited) for v, limited in zip(verdicts, unlucky, strict=True)]
    return Ruling(told, vouched)


class AnswersEarly(Appender):
    """Says "logged" of what it will hand to the producer in half a second."""

    def _produce(self, partition: int, group: list[Waiting]) -> None:
        ours = [waiting for waiting in group if isinstance(waiting.request, PurchaseRequested)]
        if not ours:
            super()._produce(partition, group)
            return
        for index, waiting in enumerate(group):
            waiting.answer(Position(partition, 0, index))
        asyncio.get_running_loop().call_later(LATE_S, super()._produce, partition, group)


class LosesSome(Appender):
    """Answers every tenth purchase and logs nothing of it."""

    _numbers = itertools.count()

    async def append(self, request: AnyRequest, subject: Limited | None) -> Answer:
        """See Appender."""
        if isinstance(request, PurchaseRequested) and next(self._numbers) % LOST_EVERY == 1:
            return Position(0, 0, 0)
        return await super().append(request, subject)


def _answers_early() -> None:
    exchange(app, Appender=AnswersEarly)
    exchange(admission, wait_seconds=_never_waits)


def _loses_some() -> None:
    exchange(app, Appender=LosesSome)
    exchange(admission, wait_seconds=_never_waits)


BUGS: dict[str, Callable[[], None]] = {
    "one key gives two purchases": lambda: exchange(IdentityKey, purchase_id=_another_id_each_time),
    "202 before the log has acknowledged": _answers_early,
    "202 for what is not logged": _loses_some,
    "a polite buyer is told 429": lambda: exchange(Claims, check=_limits_some),
}


def main() -> int:
    """The shipped program with a broken part."""
    plant("gateway", BUGS)
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
