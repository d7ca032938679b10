"""The gateway with crash points, a late view if it is told so, and a witness: `-m tests.chaos.builds.gateway`.

The witness tells whose verdict the limits went by, because nobody outside can know it: at every change, and once a
second. What is let through on that ground is judged from outside.
"""

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaError, Message

from gateway import __main__ as program
from gateway import app
from gateway.admission.batcher import RequestBatcher
from gateway.admission.send import Send
from ratelimit.limiter import Limiter, Subject, Verdict
from tests.chaos.builds.behind import LateFollower
from tests.chaos.builds.points import FOLDER, Points, exchange
from tests.chaos.edge import bugs
from tests.planted.builds.planting import FILE, plant

EVERY_S = 1.0
PRODUCED_S = 0.002  # after a record was handed over: by then it is on its way to the log, or there
ANSWERED_S = 0.01  # after the log's acknowledgement: by then its answers are on their way

POINTS = Points()


class Witness:
    """`INSTANCE.witness`: lines of [pid, began_ms, ended_ms, local], of the machine's monotonic clock.

    They speak of one batch each: whether this process judged it by its own share. Until the next line, or for a second
    and some, every other batch was judged likewise.
    """

    def __init__(self) -> None:
        self._path = Path(os.environ[FOLDER]) / f"{os.environ['STAMPEDE_INSTANCE']}.witness"
        self._last: bool | None = None
        self._told_at = 0.0

    def saw(self, began: float, *, local: bool) -> None:
        """A batch that began then has been judged now."""
        now = time.monotonic()
        if local == self._last and now - self._told_at < EVERY_S:
            return
        try:
            with self._path.open("a") as out:
                out.write(json.dumps([os.getpid(), began * 1000, now * 1000, local]) + "\n")
        except OSError:  # a full disk is a fault of the rounds: the witness is silent then, the gateway goes on
            return
        self._last, self._told_at = local, now


class DyingRequestBatcher(RequestBatcher):
    """Dies around the log's acknowledgement."""

    def _produce(self, partition: int, group: list[Send]) -> None:
        POINTS.passed("admitted")
        super()._produce(partition, group)
        asyncio.get_running_loop().call_later(PRODUCED_S, POINTS.passed, "produced")

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            POINTS.passed("acknowledged")
            asyncio.get_running_loop().call_later(ANSWERED_S, POINTS.passed, "answered")
        super()._delivered(number, error, message)


class WatchedLimiter(Limiter):
    """Tells the witness of each batch."""

    async def check(self, batch: Sequence[Subject]) -> list[Verdict]:
        """See Limiter."""
        began = time.monotonic()
        verdicts = await super().check(batch)
        if verdicts:
            WITNESS.saw(began, local=verdicts[0].degraded)
        return verdicts


WITNESS = Witness()


def main() -> None:
    """The shipped program, mortal and watched; with a planted bug if there is an order for one."""
    exchange(app, RequestBatcher=DyingRequestBatcher, Limiter=WatchedLimiter, Follower=LateFollower)
    if FILE in os.environ:
        plant("gateway", bugs.BUGS)
    program.main()


if __name__ == "__main__":
    main()
