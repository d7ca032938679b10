"""What Redis remembers of purchases: asked once a tick together with the limits, told the outcome with the next tick.

The one port through which purchases meet Redis. A purchase whose claim is lost is appended again, and the inventory
ignores the second: nothing here is needed for being right, only for giving a repeat its first answer sooner.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from eventlog.kafka import consumer, watermarks
from gateway.trust import Trust
from ratelimit.claim import Claim, Found, Settled
from ratelimit.limiter import BATCH_MAX, Judged, Limiter, RedisAway, Subject, Verdict
from stampede_schemas.topics import REQUESTS

TELL_S = 0.005  # what no tick has told by then is told without one
LOOK_S = 1.0
LOOKS_MAX = 8  # questions about single purchases under way at once: ticks must not wait for a connection
UNTOLD_MAX = 50_000
_log = logging.getLogger(__name__)


class Ruling(NamedTuple):
    """One verdict for each request. `vouched`: that a purchase is not known there means that it is new."""

    verdicts: list[Verdict]
    vouched: bool


class Claims:
    """The limiter with claims, and whether to believe it. `run` must be running."""

    def __init__(self, limiter: Limiter, trust: Trust) -> None:
        self._limiter, self._trust = limiter, trust
        self._untold: deque[Settled] = deque(maxlen=UNTOLD_MAX)
        self._settled = asyncio.Event()
        self._told_at = time.monotonic()
        self._stamp = ""
        self._looks = asyncio.Semaphore(LOOKS_MAX)

    @property
    def vouches(self) -> bool:
        """Whether the last answer of Redis was to be believed."""
        return self._trust.vouches(self._stamp)

    async def check(self, batch: Sequence[Subject], claims: Sequence[Claim]) -> Ruling:
        """Judge a tick, at most BATCH_MAX; never raises for Redis' sake."""
        judged = await self._ask(batch, claims)
        return Ruling(judged.verdicts, self._trust.vouches(judged.stamp))

    def settle(self, settled: Iterable[Settled]) -> None:
        """What became of requests that were let through; goes with the next call."""
        self._untold.extend(settled)
        self._settled.set()

    async def find(self, purchase_id: str) -> tuple[Found | None, int, bool]:
        """The claim on a purchase, if there is one; Redis' clock in ms; whether "none" is to be believed."""
        async with self._looks:
            judged = await self._limiter.judge(look=purchase_id)
        return judged.found, judged.now_ms, self._trust.vouches(judged.stamp)

    async def open(self) -> None:
        """Learn whom to believe before the first purchase comes; without Redis, too."""
        await self._limiter.open()
        await self.look()

    async def look(self) -> None:
        """Settle anew whom to believe, and pass on what waits."""
        judged = await self._ask()
        if judged.stamp.startswith(" "):  # flushed, or new
            try:
                await self._limiter.mark()
            except RedisAway:
                return
            judged = await self._ask()
        await self._limiter.mend()
        await self._trust.look(judged.stamp, time.monotonic() - self._told_at if self._untold else 0.0)

    async def run(self) -> None:
        """Look each second, and tell what no tick has told, until cancelled."""
        looked_at = 0.0
        while True:
            if time.monotonic() - looked_at >= LOOK_S:
                looked_at = time.monotonic()
                try:
                    await self.look()
                except Exception:  # whatever it was, claims go on being told, and the next look may settle it
                    _log.exception("whether Redis vouches could not be settled")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._settled.wait()
            await asyncio.sleep(TELL_S)
            self._settled.clear()
            if self._untold and not self._limiter.degraded:
                await self._ask()

    async def close(self) -> None:
        """Tell what is left, as long as Redis answers."""
        while self._untold and (await self._ask()).stamp:
            pass

    async def _ask(self, batch: Sequence[Subject] = (), claims: Sequence[Claim] = ()) -> Judged:
        settled = [self._untold.popleft() for _ in range(min(len(self._untold), BATCH_MAX))]
        judged = await self._limiter.judge(batch, claims, settled)
        self._stamp = judged.stamp
        if judged.stamp:
            self._told_at = time.monotonic()
        else:
            self._untold.extendleft(reversed(settled))
        return judged


async def request_ends(kafka: str) -> Mapping[int, int]:
    """Where each partition of `requests` ends now. Raises KafkaException."""
    return await asyncio.to_thread(_ends, kafka)


def _ends(kafka: str) -> dict[int, int]:
    client = consumer(kafka)
    try:
        return {p: watermarks(client, REQUESTS.name, p)[1] for p in range(REQUESTS.partitions)}
    finally:
        client.close()
