"""Kafka as Stampede uses it: client settings, reading a range of a partition, checking topics against the registry.

Blocking calls of confluent-kafka; callers on an event loop run them in a thread.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, ResourceType, TopicDescription

from eventlog.reader import CountingReader, LogBroken, Progress, check_anchor
from stampede_schemas.topics import MESSAGE_BYTES_MAX, TOPICS, Topic

DELIVERY_TIMEOUT_MS = 5_000  # a gateway must know a purchase's fate before its client gives up
READ_BATCH_MAX = 1_000
READ_STALL_S_MAX = 30.0
METADATA_TIMEOUT_S = 10.0
ELECTION_S_MAX = 10.0
ELECTION_POLL_S = 0.1
REPLICAS_MIN, IN_SYNC_MIN = 3, 2  # in production: one broker may be lost, and one restarted meanwhile

_log = logging.getLogger(__name__)
T = TypeVar("T")
_CLIENT: dict[str, str | int | float | bool] = {
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1_000,
    "socket.keepalive.enable": True,
    # A restarted broker has another leader epoch; what is remembered of the old one is an error for so long.
    "topic.metadata.refresh.interval.ms": 5_000,
    "metadata.max.age.ms": 5_000,
    "log_level": 2,  # an absent broker is said once by whoever needs it, not 20 times a second by librdkafka
}

# What a broker says of a topic that was just made, or while it elects.
_ELECTING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
}

# What a client says of a broker that is silent, away, or just back.
_SILENT = {
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._WAIT_COORD,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}


class TopicsWrong(Exception):
    """The broker's topics are not those of the registry; the message says which and what to do."""


class TopicsUnknown(TopicsWrong):
    """The broker did not say what its topics are."""


def producer(kafka: str, **settings: Any) -> Producer:
    """An idempotent producer with `acks=all`. `settings` override; poll it for delivery reports."""
    return Producer(
        _CLIENT
        | {
            "bootstrap.servers": kafka,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "compression.type": "lz4",
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
            "message.max.bytes": 2 * MESSAGE_BYTES_MAX,  # a dead letter; the topics hold everything else to half
            "queue.buffering.max.kbytes": 65_536,
        }
        | settings
    )


def consumer(kafka: str, **settings: Any) -> Consumer:
    """A consumer that commits nothing by itself. Without `group.id` it is for `assign` only."""
    return Consumer(
        _CLIENT
        | {
            "bootstrap.servers": kafka,
            "group.id": "stampede-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "fetch.max.bytes": MESSAGE_BYTES_MAX,  # in one answer: compressed values inflate all at once
            "queued.max.messages.kbytes": 16_384,
        }
        | settings
    )


def retry_on_election(work: Callable[[], T]) -> T:
    """Do `work` again while leaders are being elected, for ten seconds.

    Raises:
        KafkaException: another error, or they still are.
    """
    deadline = time.monotonic() + ELECTION_S_MAX
    while True:
        try:
            return work()
        except KafkaException as error:
            if error.args[0].code() not in _ELECTING or time.monotonic() > deadline:
                raise
        time.sleep(ELECTION_POLL_S)


def is_silence(error: KafkaException) -> bool:
    """Whether the broker does not answer now, and may later."""
    return error.args[0].code() in _SILENT


def watermarks(client: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """First offset of a partition and the one after its last."""
    found = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=METADATA_TIMEOUT_S)
    if found is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return int(found[0]), int(found[1])


def place_of(message: Message) -> tuple[int, int]:
    """Partition and offset of a record that was read or acknowledged: it has both."""
    return cast("tuple[int, int]", (message.partition(), message.offset()))


def check_passing(error: KafkaError, where: str) -> None:
    """Return if a consumed error may pass by itself.

    Raises:
        LogBroken: `where` no longer holds what comes next.
        KafkaException: this client will never read again (another process has its name, say).
    """
    if error.code() in {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET}:
        raise LogBroken(f"{where} no longer holds what comes next: part of the log is gone ({error.str()})")
    # An error that is delivered as `_FATAL` says of itself that it is not fatal.
    if error.fatal() or error.code() == KafkaError._FATAL:
        raise KafkaException(error)


def read_range(client: Consumer, topic: str, partition: int, start: int, end: int) -> Iterator[Message]:
    """Every record of `[start, end)`. The client must be free to be assigned elsewhere.

    Raises:
        LogBroken: the range is not in the log, or nothing came for twice 30 s while the broker answered.
        KafkaException: the broker does not answer.
    """
    if start >= end:
        return
    client.assign([TopicPartition(topic, partition, start)])
    try:
        heard, asked = time.monotonic(), False
        while start < end:
            messages = client.consume(min(READ_BATCH_MAX, end - start), timeout=0.2)
            for message in messages:
                error = message.error()
                if error is not None:
                    check_passing(error, f"{topic}/{partition}")
                    continue
                heard, asked = time.monotonic(), False
                offset = message.offset()
                assert offset is not None
                if offset >= end:
                    return
                start = offset + 1
                yield message
            if time.monotonic() - heard > READ_STALL_S_MAX:
                watermarks(client, topic, partition)  # a broker that was silent, or is, says nothing about its log
                if asked:
                    raise LogBroken(
                        f"{topic}/{partition} gave nothing from offset {start} (of {end}) for "
                        f"{2 * READ_STALL_S_MAX:.0f} s, and its broker answers"
                    )
                heard, asked = time.monotonic(), True
    finally:
        client.unassign()


def read_one(client: Consumer, topic: str, partition: int, offset: int) -> Message:
    """The record at `offset`.

    Raises:
        LogBroken: there is none.
    """
    for message in read_range(client, topic, partition, offset, offset + 1):
        return message
    raise LogBroken(f"{topic}/{partition} no longer holds offset {offset}: part of the log is gone")


def resume(client: Consumer, topic: str, partition: int, progress: Progress) -> CountingReader:
    """A reader that goes on where `progress` ends, after the anchor was found in place.

    Raises:
        LogBroken: `progress` is beyond the end, or another record stands at the anchor.
    """
    _, end = watermarks(client, topic, partition)
    if progress.next_offset > end:
        raise LogBroken(
            f"{topic}/{partition} ends at {end}, but it was read up to {progress.next_offset} before: it lost its tail"
        )
    if progress.anchor >= 0:
        check_anchor(progress, read_one(client, topic, partition, progress.anchor).value())
    return CountingReader(progress)


@cache
def admin_client(kafka: str) -> AdminClient:
    """The one admin client of this process: one that is collected in librdkafka's own thread aborts the process."""
    return AdminClient(_CLIENT | {"bootstrap.servers": kafka})


def topic_ids(kafka: str, topics: tuple[Topic, ...] = TOPICS, *, production: bool | None = None) -> dict[str, str]:
    """Kafka's own id of each topic, and a check of existence, partitions and configuration.

    A topic that was deleted and made again has another id: positions remembered for the old one mean nothing.

    Args:
        production: whether topics that can lose what they acknowledged are refused, or only warned of; None: neither.

    Raises:
        TopicsWrong: a topic is missing or differs from the registry, or may not be used in production.
    """
    admin = admin_client(kafka)
    names = [topic.name for topic in topics]
    described = admin.describe_topics(TopicCollection(names), request_timeout=METADATA_TIMEOUT_S)
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    configs = {r.name: f for r, f in admin.describe_configs(resources, request_timeout=METADATA_TIMEOUT_S).items()}
    ids: dict[str, str] = {}
    weak: defaultdict[str, list[str]] = defaultdict(list)
    for topic in topics:
        try:
            found = described[topic.name].result()
            config = configs[topic.name].result()
        except KafkaException as error:
            raise _wrong(kafka, topic, error) from None
        if any(partition.leader is None for partition in found.partitions):
            raise TopicsUnknown(f"Kafka at {kafka} is still electing leaders for {topic.name}: try again in a moment.")
        if len(found.partitions) != topic.partitions:
            raise TopicsWrong(
                f"topic {topic.name} has {len(found.partitions)} partitions and must have {topic.partitions}: "
                "products would move to other partitions. Make the topics anew with `python -m eventlog provision`."
            )
        for key, wanted in topic.config.items():
            if config[key].value != wanted:
                raise TopicsWrong(
                    f"topic {topic.name} has {key}={config[key].value} and must have {wanted}: "
                    "correct it with `python -m eventlog provision`."
                )
        ids[topic.name] = str(found.topic_id)
        for weakness in weaknesses(found, config):
            weak[weakness].append(topic.name)
    if weak and production is not None:
        said = "; ".join(
            f"{weakness} ({', '.join(found) if len(found) < len(topics) else 'every topic'})"
            for weakness, found in weak.items()
        )
        if production:
            raise TopicsWrong(
                f"Kafka can lose what it acknowledged: {said}. "
                "Correct it with `python -m eventlog provision --replication 3`."
            )
        _log.warning("Kafka can lose what it acknowledged; for demonstrations only: %s", said)
    return ids


def replicas(topic: TopicDescription) -> int:
    """How many each of its partitions has at least."""
    return min(len(partition.replicas) for partition in topic.partitions)


def weaknesses(found: TopicDescription, config: Mapping[str, ConfigEntry]) -> Iterator[str]:
    """How a topic can lose records that were acknowledged."""
    if replicas(found) < REPLICAS_MIN:
        yield f"fewer than {REPLICAS_MIN} replicas"
    if int(config["min.insync.replicas"].value or 1) < IN_SYNC_MIN:
        yield f"min.insync.replicas is below {IN_SYNC_MIN}"
    if config["unclean.leader.election.enable"].value != "false":
        yield "unclean.leader.election.enable is not false"


def _wrong(kafka: str, topic: Topic, error: KafkaException) -> TopicsWrong:
    code = error.args[0].code()
    if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return TopicsWrong(f"topic {topic.name} is missing: make the topics with `python -m eventlog provision`.")
    return TopicsUnknown(
        f"Kafka at {kafka} did not say what its topics are ({error.args[0].str()}): is it running there?"
    )
