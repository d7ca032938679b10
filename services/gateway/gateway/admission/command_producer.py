"""Puts commands (cancellations, what payment providers report) on `stampede.order-commands`, and waits for the log.

They are few, so each is a record and a delivery report of its own, on a producer that purchases do not share. Every
command has an id derived from what it asks for: one that is sent twice is acted on once.
"""

import asyncio
import logging

from confluent_kafka import KafkaError, Message

from eventlog.producer import RenewedProducer, serve_reports
from gateway.http.retry_after import outcome_unknown, overloaded
from service.problem_details import Problem
from stampede_schemas.codec import encode
from stampede_schemas.order_commands import AnyCommand
from stampede_schemas.topics import ORDER_COMMANDS, partition_of

POLL_S = 0.002
IN_FLIGHT_MAX = 1_000
ANSWER_S_MAX = 6.0  # longer than the producer's own patience: its report is the better answer
_log = logging.getLogger(__name__)


class Commands:
    """Appends commands one by one. `run` must be running for anything to be acknowledged."""

    def __init__(self, producer: RenewedProducer) -> None:
        self._producer = producer
        self._in_flight: set[asyncio.Future[bool]] = set()
        self._sent = asyncio.Event()

    async def append(self, command: AnyCommand, key: str) -> Problem | None:
        """None once the log has acknowledged; `key` (a purchase, or a product) names the partition."""
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            return overloaded("Too many commands are on their way.")
        done = asyncio.get_running_loop().create_future()

        def reported(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                _log.error("a command was not acknowledged: %s", error.str())
            if not done.done():
                done.set_result(error is None)

        self._in_flight.add(done)
        try:
            self._producer.produce(
                ORDER_COMMANDS.name, encode(command), key=key, partition=partition_of(key), on_delivery=reported
            )
            self._sent.set()
            async with asyncio.timeout(ANSWER_S_MAX):
                if await done:
                    return None
        except (BufferError, TimeoutError):
            _log.warning("a command was not sent, or not acknowledged in time")
        finally:
            self._in_flight.discard(done)
        return outcome_unknown("Send the same request again; it will be acted on once.")

    async def run(self) -> None:
        """Serve delivery reports while any are outstanding."""
        await serve_reports(self._producer, self._sent, self._in_flight, POLL_S)
