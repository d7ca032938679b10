"""Looks at Redis from beside, on a connection of its own: what it forgot and when, and which keys it dropped.

A counter that is raised with each look tells how far a memory was thrown back. Nothing that the services use is touched
but the setting that makes Redis tell of evicted keys.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import RedisError
from redis.retry import Retry

from replay.rules.s11_limiter import Span
from tests.chaos.edge.account import Evicted, Memory

EVERY_S = 0.02
ANSWER_S_MAX = 1.0
CANARY = "edge-canary"
EVICTIONS = "__keyevent@0__:evicted"


class Watch:
    """Runs in a thread of its own until stopped."""

    def __init__(self, url: str) -> None:
        self.memory = Memory()
        self.answered = False  # when it was looked at last
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._count, self._answered_ms = 0, now_ms()
        self._evicted = -1  # until its first answer: what it evicted before is not of this round
        self._told: PubSub | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        never = Retry(NoBackoff(), 0)  # what is sent twice would raise the counter twice
        client: Redis = Redis.from_url(self._url, socket_timeout=ANSWER_S_MAX, decode_responses=True, retry=never)
        while not self._stop.wait(EVERY_S):
            try:
                self._look(client, away=not self.answered)
                self.answered = True
            except (RedisError, OSError):
                self.answered = False
                self._told = None
                client.connection_pool.disconnect()
        client.close()

    def _look(self, client: Redis, *, away: bool) -> None:
        if self._told is None:
            client.config_set("notify-keyspace-events", "Ee")
            self._told = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            self._told.subscribe(EVICTIONS)
            away = True  # what was dropped until now was told to nobody
        with client.pipeline(transaction=True) as asked:
            asked.incr(CANARY)
            asked.info("stats")
            count, stats = asked.execute()
        since = Span(self._answered_ms, now_ms())
        self.memory.looks += 1
        if away and self._count:
            self.memory.away.append(since)
        if count <= self._count:
            self.memory.lost.append(since)
        self._note_evicted(int(stats["evicted_keys"]), since)
        self._count, self._answered_ms = count, since.to_ms

    def _note_evicted(self, evicted: int, since: Span) -> None:
        """By name, as long as each of them was told."""
        before, self._evicted = self._evicted, evicted
        if before < 0 or evicted <= before:  # as before, or another process
            return
        names = [message["data"] for message in self._messages(evicted - before)]
        self.memory.evicted += [Evicted(*since, name) for name in names]
        if len(names) != evicted - before:
            self.memory.lost.append(since)

    def _messages(self, count: int) -> Iterator[dict[str, Any]]:
        assert self._told is not None
        over = now_ms() + ANSWER_S_MAX * 1000
        while count and now_ms() < over:
            message = self._told.get_message(timeout=EVERY_S)
            if message is not None:  # None: nothing yet, or a word about the subscription
                count -= 1
                yield message


def now_ms() -> float:
    """The machine's monotonic clock."""
    return time.monotonic() * 1000


@contextmanager
def watching(url: str) -> Iterator[Watch]:
    """A watcher, for the length of a block."""
    watch = Watch(url)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
