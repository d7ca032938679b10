"""When Redis vouches: only then does a claim that is not there mean that nothing was accepted.

Redis forgets without saying so: flushed, restarted with an older file, replaced by a replica that was behind, evicting.
So each of its answers bears a stamp: a sentinel (random, gone with a flush), the id of the server's process, how many
keys it evicted. Postgres keeps the stamp that is believed; whatever has another one counts as away.

How another stamp comes to be believed. Say a gateway first sees it at T. Whoever is accepted by a call after T has a
claim under it. Who was let in before T may have lost theirs; but by T + DEADLINE_S they are in the log, or will never
be told that they are (a later acknowledgement is answered with "unknown"). So once the order-writer has applied all
that `requests` held after T + DEADLINE_S, each of them has a row, and "no claim, no row" means new again.

A gateway whose acknowledged purchases do not reach Redis withdraws the trust of all: the others cannot see them there.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import KafkaException

from gateway.store import Away, NotMigrated
from ratelimit.claim import DEADLINE_S

NAME = "claims_stamp"
SLACK_S = 1.0  # between an acknowledgement and its claim: the next tick, or the next look
UNTOLD_S_MAX = 3.0
_log = logging.getLogger(__name__)


class Records(Protocol):
    """What is asked of Postgres; raises Away."""

    async def installation(self, name: str) -> str | None:
        """What is kept under a name; None: nothing ever was."""
        ...

    async def replace_installation(self, name: str, old: str | None, new: str) -> None:
        """Keep `new` if `old` is still kept."""
        ...

    async def applied(self) -> dict[int, int]:
        """By partition, the last request whose outcome is in Postgres."""
        ...


@dataclass(slots=True)
class _Probation:
    stamp: str
    since: float
    ends: Mapping[int, int] | None = None  # of `requests`, when all that may lack a claim was in it


class Trust:
    """Which stamp is believed. `ends` tells where each partition of `requests` ends now."""

    def __init__(
        self,
        records: Records,
        ends: Callable[[], Awaitable[Mapping[int, int]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records, self._ends, self._clock = records, ends, clock
        self._believed = ""
        self._probation: _Probation | None = None

    def vouches(self, stamp: str) -> bool:
        """Whether what bears this stamp has forgotten nothing."""
        return bool(stamp) and stamp == self._believed

    async def look(self, stamp: str, untold_s: float) -> None:
        """Compare with Postgres, each second; `stamp` is empty while Redis is away.

        `untold_s`: for how long there have been purchases that were acknowledged and that Redis could not be told of.
        While Postgres is away everything stays as it is.
        """
        try:
            held = await self._records.installation(NAME)
            wanted = await self._wanted(held, stamp, untold_s)
            if wanted != held and wanted is not None:
                await self._records.replace_installation(NAME, held, wanted)
                held = await self._records.installation(NAME)
                _log.warning("Redis %s", "vouches" if held == stamp else "does not vouch", extra={"stamp": stamp})
        except (Away, NotMigrated, KafkaException) as error:
            _log.info("whether Redis vouches cannot be settled now: %s", error)
        else:
            self._believed = held or ""

    async def _wanted(self, held: str | None, stamp: str, untold_s: float) -> str | None:
        if held is None:
            return stamp or None  # the first of this installation: nothing can have been forgotten
        if untold_s > UNTOLD_S_MAX:
            self._probation = None
            return ""
        if stamp in ("", held):
            return held
        return stamp if await self._proven(stamp) else held

    async def _proven(self, stamp: str) -> bool:
        probation = self._probation
        if probation is None or probation.stamp != stamp:
            self._probation = _Probation(stamp, self._clock())
            return False
        if probation.ends is None:
            if self._clock() - probation.since < DEADLINE_S + SLACK_S:
                return False
            probation.ends = await self._ends()
        applied = await self._records.applied()
        return all(applied.get(partition, -1) >= end - 1 for partition, end in probation.ends.items())
