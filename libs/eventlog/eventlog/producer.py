"""A producer that outlives its own death.

librdkafka declares an idempotent producer dead (a *fatal* error) when the broker's log no longer continues what it
wrote, as after a lost tail: `poll` raises once, and each further record is refused. The log goes on, and so does
another producer.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, Producer

FLUSH_LOOK_S = 0.05
_log = logging.getLogger(__name__)


class RenewedProducer:
    """Used like a `Producer`; `make` gives each incarnation. Its reports must be polled for, those of the dead too."""

    def __init__(self, make: Callable[[], Producer]) -> None:
        self._make, self._producer = make, make()
        self._dead: list[Producer] = []  # with records whose reports are not served yet

    def produce(self, *record: Any, **settings: Any) -> None:
        """Hand a record over. Raises BufferError, or KafkaException where another incarnation would not help."""
        try:
            self._producer.produce(*record, **settings)
        except KafkaException as error:
            self._renew(error)
            self._producer.produce(*record, **settings)

    def poll(self, timeout: float) -> int:
        """Serve delivery reports; how many events there were."""
        served = sum(self._serve(dead, 0) for dead in self._dead)
        self._dead = [dead for dead in self._dead if len(dead)]
        return served + self._serve(self._producer, timeout)

    def flush(self, timeout: float) -> int:
        """Wait until every record has its report; how many have none."""
        over = time.monotonic() + timeout
        while (left := len(self._producer) + sum(map(len, self._dead))) and time.monotonic() < over:
            self.poll(FLUSH_LOOK_S)
        return left

    def _serve(self, producer: Producer, timeout: float) -> int:
        try:
            return producer.poll(timeout)
        except KafkaException as error:
            if producer is self._producer:
                self._renew(error)
            return 0

    def _renew(self, error: KafkaException) -> None:
        if not _is_fatal(error.args[0]):
            raise error
        _log.error("the producer is dead, another one takes over: %s", error.args[0].str())
        self._dead.append(self._producer)
        self._producer = self._make()


async def serve_reports(
    producer: RenewedProducer, sent: asyncio.Event, outstanding: Collection[object], every_s: float
) -> NoReturn:
    """Serve delivery reports while any are outstanding, until cancelled; `sent` is set with each new record."""
    while True:
        await sent.wait()
        while outstanding:
            producer.poll(0)
            await asyncio.sleep(every_s)
        sent.clear()


def _is_fatal(error: KafkaError) -> bool:
    # An error that is raised as `_FATAL` says of itself that it is not fatal.
    return error.fatal() or error.code() == KafkaError._FATAL
