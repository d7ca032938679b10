"""For which moments the view of a partition is fresh: whether all that stood in `requests` then has been applied.

A view is fresh for moment t when it has applied the decision of every request that stood in the log at t. The proof is
an end of `requests` that was queried after t and is covered by the last applied source offset. The acknowledgement of
a record that was produced here after t names such an end too. An end below what was applied or acknowledged here is a
lost tail: it proves nothing.
"""

import asyncio
import logging
import queue
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from confluent_kafka import KafkaException, TopicPartition

from eventlog.kafka import consumer
from service.tasks import in_thread
from stampede_schemas.topics import PARTITIONS

QUERY_EVERY_S = 0.004  # between the starts of two queries: those who came meanwhile share the next one
QUERY_S_MAX = 0.1
LOOK_EVERY_S = 0.25
BARRIERS_MAX = 64  # ends of one partition that are not covered yet
_END = -1  # as offsets_for_times names the end of a partition
_log = logging.getLogger(__name__)

Ends = Callable[[Sequence[int]], Awaitable[Mapping[int, int]]]
LostTail = Callable[[int, int, int], None]


class EndQueries:
    """Asks a broker where partitions end, from a thread and a consumer of its own: nothing else can hold it up."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._queries: queue.SimpleQueue[tuple[list[TopicPartition], asyncio.Future[dict[int, int]]] | None]
        self._queries = queue.SimpleQueue()

    async def run(self) -> None:
        """Answer queries until cancelled."""
        await in_thread(partial(self._serve, asyncio.get_running_loop()), partial(self._queries.put, None))

    async def ends(self, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """Where these partitions end; those that did not say so within QUERY_S_MAX are missing."""
        future: asyncio.Future[dict[int, int]] = asyncio.get_running_loop().create_future()
        self._queries.put(([TopicPartition(topic, partition, _END) for partition in partitions], future))
        return await future

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        client = consumer(self._kafka)
        while (query := self._queries.get()) is not None:
            places, future = query
            ends: dict[int, int] = {}
            try:
                found = client.offsets_for_times(places, timeout=QUERY_S_MAX)
                ends = {place.partition: place.offset for place in found if place.error is None and place.offset >= 0}
            except KafkaException as error:
                _log.debug("the ends of %s are not known: %s", places[0].topic, error.args[0].str())
            except Exception:  # the next question may be answered
                _log.exception("the ends of %s are not known", places[0].topic)
            loop.call_soon_threadsafe(_answer, future, ends)
        client.close()


def _answer(future: "asyncio.Future[dict[int, int]]", ends: dict[int, int]) -> None:
    if not future.done():
        future.set_result(ends)


class _Partition:
    __slots__ = ("acknowledged_end", "applied_end", "barriers", "fresh_for", "looked_at", "newest", "waiting")

    def __init__(self) -> None:
        self.applied_end = 0  # behind the last request whose decision is applied
        self.acknowledged_end = 0  # behind the last request acknowledged here
        self.fresh_for = self.looked_at = float("-inf")
        self.barriers: deque[tuple[float, int]] = deque()  # moment and end, both rising
        self.waiting: dict[asyncio.Future[bool], float] = {}
        self.newest = float("-inf")  # of the moments that were waited for

    @property
    def asked_for(self) -> float:
        """The latest moment for which an end is known, covered or not."""
        return self.barriers[-1][0] if self.barriers else self.fresh_for

    @property
    def unasked(self) -> bool:
        """Whether somebody waits for a later moment than an end was queried for."""
        return bool(self.waiting) and self.newest > self.asked_for


class Freshness:
    """Knows whether views are fresh. `run` must be running for any end of `requests` to be seen."""

    def __init__(self, ends: Ends, lost_tail: LostTail, clock: Callable[[], float] = time.monotonic) -> None:
        self._ends, self._lost_tail, self._clock = ends, lost_tail, clock
        self._partitions = [_Partition() for _ in range(PARTITIONS)]
        self._wanted = asyncio.Event()

    async def fresh(self, partition: int, moment: float, within_s: float) -> bool:
        """Whether the view covers all that stood in the log at `moment`, waited for at most `within_s`."""
        view = self._partitions[partition]
        if view.fresh_for >= moment:
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        view.waiting[future] = moment
        view.newest = max(view.newest, moment)
        self._wanted.set()
        # A timer, not a cancellation: after a pause of this process the answers that lie ready are handled first.
        timer = loop.call_later(within_s, _settle, future)
        try:
            return await future
        finally:
            timer.cancel()
            del view.waiting[future]

    def applied(self, partition: int, source_offset: int) -> None:
        """The decision of this request, and of all before it, is in the view."""
        view = self._partitions[partition]
        view.applied_end = source_offset + 1
        if view.barriers:
            self._cover(view)

    def acknowledged(self, partition: int, offset: int, produced_at: float) -> None:
        """A record that was produced here at that moment stands at `offset`: it is behind all that stood there then."""
        view = self._partitions[partition]
        view.acknowledged_end = max(view.acknowledged_end, offset + 1)
        if view.waiting:
            self._barrier(view, produced_at, offset)

    async def ask(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Where these partitions end now; those whose end is not known, or is that of a lost tail, are missing."""
        moment, views = self._clock(), self._partitions
        stood = {n: max(views[n].acknowledged_end, views[n].applied_end) for n in partitions}
        ends = await self._ends(partitions)
        for partition, end in ends.items():
            if end < stood[partition]:
                self._lost_tail(partition, end, stood[partition])
            else:
                self._barrier(views[partition], moment, end)
        return {partition: end for partition, end in ends.items() if end >= stood[partition]}

    async def check(self, partition: int) -> None:
        """Ask where a partition ends now, unless that was done a moment ago: however many want to know."""
        view = self._partitions[partition]
        if self._clock() - view.looked_at >= LOOK_EVERY_S:
            view.looked_at = self._clock()
            await self.ask((partition,))

    async def run(self) -> None:
        """Ask as long as somebody waits, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            began = self._clock()
            while wanted := [number for number, view in enumerate(self._partitions) if view.unasked]:
                await self.ask(wanted)
                await asyncio.sleep(max(0.0, QUERY_EVERY_S - (self._clock() - began)))
                began = self._clock()

    def _barrier(self, view: _Partition, moment: float, end: int) -> None:
        if moment <= view.asked_for:
            return
        if view.barriers and (view.barriers[-1][1] >= end or len(view.barriers) >= BARRIERS_MAX):
            # One proof for both: an end that is good for the later moment is good for the earlier one too.
            end = max(end, view.barriers.pop()[1])
        view.barriers.append((moment, end))
        self._cover(view)

    def _cover(self, view: _Partition) -> None:
        barriers = view.barriers
        if not barriers or barriers[0][1] > view.applied_end:
            return
        while barriers and barriers[0][1] <= view.applied_end:
            view.fresh_for = max(view.fresh_for, barriers.popleft()[0])
        for future, moment in view.waiting.items():
            if moment <= view.fresh_for and not future.done():
                future.set_result(True)


def _settle(future: "asyncio.Future[bool]") -> None:
    if not future.done():
        future.set_result(False)
