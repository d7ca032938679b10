"""Answers what a load asks (`Ends`, `Range`), from Kafka: the blocking side of loading, run in threads."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaException, Message

from eventlog.kafka import consumer, read_range, watermarks
from eventlog.reader import LogBroken
from inventory.loading import Ends, Loaded, Loading, Query, QueryResult, Range, Record, SnapshotsUnreadable
from stampede_schemas.identifiers import Millis
from stampede_schemas.topics import STOCK_SNAPSHOTS


class LogReader:
    """Reads any topic's records for this worker. Thread-safe: each use borrows a consumer of its own."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._idle: queue.LifoQueue[Consumer] = queue.LifoQueue()

    @contextmanager
    def _borrow(self) -> Iterator[Consumer]:
        try:
            client = self._idle.get_nowait()
        except queue.Empty:
            client = consumer(self._kafka, **{"fetch.wait.max.ms": 20})
        try:
            yield client
        except (KafkaException, LogBroken):
            client.close()
            raise
        else:
            self._idle.put(client)

    def finish(self, partition: int, loading: Loading) -> Loaded:
        """Drive a load to its end."""
        with self._borrow() as client:
            ask = next(loading)
            while True:
                try:
                    ask = loading.send(_answer(client, partition, ask))
                except SnapshotsUnreadable as unreadable:
                    ask = loading.throw(unreadable)
                except StopIteration as done:
                    loaded: Loaded = done.value
                    return loaded

    def read(self, topic: str, partition: int, start: int, end: int) -> list[Record]:
        """The records of `[start, end)`, or those of its beginning that can be had."""
        with self._borrow() as client:
            return [_record(message) for message in read_range(client, topic, partition, start, end)]

    def ends(self, topic: str, partitions: list[int]) -> dict[int, tuple[int, int]]:
        """First offset and end of each of these partitions."""
        with self._borrow() as client:
            return {partition: watermarks(client, topic, partition) for partition in partitions}

    def close(self) -> None:
        """Close the idle consumers."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _answer(client: Consumer, partition: int, ask: Query) -> QueryResult:
    match ask:
        case Ends(topic):
            with _costs_the_snapshot(topic):
                return watermarks(client, topic, partition)
        case Range():
            return _records(client, partition, ask)


def _records(client: Consumer, partition: int, ask: Range) -> Iterator[Record]:
    with _costs_the_snapshot(ask.topic):
        yield from map(_record, read_range(client, ask.topic, partition, ask.start, ask.end))


@contextmanager
def _costs_the_snapshot(topic: str) -> Iterator[None]:
    """Trouble with `stock-snapshots` ends no load: only decisions and requests have to be there."""
    try:
        yield
    except (KafkaException, LogBroken) as error:
        if topic != STOCK_SNAPSHOTS.name:
            raise
        raise SnapshotsUnreadable(str(error)) from error


def _record(message: Message) -> Record:
    offset = message.offset()
    assert offset is not None
    value = message.value()
    assert value is None or isinstance(value, bytes)
    return Record(offset, value, Millis(message.timestamp()[1]))
