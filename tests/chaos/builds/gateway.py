"""The gateway with crash points, a wrong clock if it is told so, and a witness: `-m tests.chaos.builds.gateway`.

The witness tells whose answer limits and claims went by, because nobody outside can know it: at every change, and once
a second. What is let through on that ground is judged from outside.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaError, Message

from gateway import __main__ as program
from gateway import app
from gateway.appender import Appender, Waiting
from gateway.claims import Claims
from ratelimit.claim import Claim
from ratelimit.limiter import Judged, Subject
from tests.chaos.builds.points import FOLDER, Points, exchange
from tests.chaos.door import bugs
from tests.planted.builds.planting import FILE, plant

EVERY_S = 1.0

POINTS = Points()


class Witness:
    """`INSTANCE.witness`: lines of [pid, began_ms, ended_ms, stamp, vouched], of the machine's monotonic clock.

    They speak of one call to Redis each; the stamp is empty if it did not answer. Until the next line, or for a second
    and some, every other call came to the same.
    """

    def __init__(self) -> None:
        self._path = Path(os.environ[FOLDER]) / f"{os.environ['STAMPEDE_INSTANCE']}.witness"
        self._last: tuple[str, bool] | None = None
        self._told_at = 0.0

    def saw(self, began: float, stamp: str, *, vouched: bool) -> None:
        """A call that began then has ended now."""
        now = time.monotonic()
        if (stamp, vouched) == self._last and now - self._told_at < EVERY_S:
            return
        line = json.dumps([os.getpid(), began * 1000, now * 1000, stamp, vouched]) + "\n"
        try:
            with self._path.open("a") as out:
                out.write(line)
        except OSError:  # a full disk is a fault of the rounds: the witness is silent then, the gateway goes on
            return
        self._last, self._told_at = (stamp, vouched), now


class DyingAppender(Appender):
    """Dies around the log's acknowledgement."""

    def _produce(self, partition: int, group: list[Waiting]) -> None:
        POINTS.passed("claimed")
        super()._produce(partition, group)

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            POINTS.passed("acknowledged")
        super()._delivered(number, error, message)


class DyingClaims(Claims):
    """Dies when buyers have their answer, and Redis is about to hear of it; tells the witness of each call."""

    async def _ask(self, batch: Sequence[Subject] = (), claims: Sequence[Claim] = ()) -> Judged:
        if any(settled.how == "a" for settled in self._untold):
            POINTS.passed("answered")
        began = time.monotonic()
        judged = await super()._ask(batch, claims)
        WITNESS.saw(began, judged.stamp, vouched=self._trust.vouches(judged.stamp))
        return judged


WITNESS = Witness()


def main() -> int:
    """The shipped program, mortal and watched; with a planted bug if there is an order for one."""
    exchange(app, Appender=DyingAppender, Claims=DyingClaims)
    if FILE in os.environ:
        plant("gateway", bugs.BUGS)
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
