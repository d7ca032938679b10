"""The registry of topics keeps the promises the readers of the log rely on."""

from typing import get_args

import pytest

from contracts.messages import messages_of
from stampede_schemas.dead_letters import KEPT_BYTES, WHOLE_BYTES_MAX
from stampede_schemas.decisions import AnyDecision
from stampede_schemas.requests import AnyRequest, RequestBatch
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, MESSAGE_BYTES_MAX, PARTITIONS, REQUESTS, TOPICS, Topic
from stampede_schemas.upcasts import DECISION_UPCASTS, KNOWN_REQUEST_TYPES, REQUEST_UPCASTS

NAMES = ("requests", "decisions", "stock-snapshots", "order-commands", "orders", "dead-letters")
LETTER_HEADERS_BYTES_MAX = 1_024
SERVICES = {"gateway", "inventory", "order-writer", "ratelimit"}


def test_the_topics_are_these_six() -> None:
    """The names are an interface: tools outside, access lists and dashboards know them."""
    assert tuple(topic.name for topic in TOPICS) == tuple(f"stampede.{name}" for name in NAMES)


def test_decisions_have_one_writer_and_requests_exactly_two() -> None:
    """Only the inventory decides; only the gateway asks for buyers and the order-writer gives back."""
    assert DECISIONS.writers == ("inventory",)
    assert set(REQUESTS.writers) == {"gateway", "order-writer"}
    assert all(set(topic.writers) <= SERVICES and topic.writers for topic in TOPICS)


def test_a_message_type_belongs_to_one_topic() -> None:
    """No type can be met on two topics, so its name alone says where it came from."""
    placed = [message for topic in TOPICS for message in messages_of(topic)]
    assert len(placed) == len(set(placed))
    assert messages_of(REQUESTS) == (RequestBatch,)


@pytest.mark.parametrize("topic", [REQUESTS, DECISIONS], ids=lambda topic: topic.name)
def test_the_log_is_kept_for_ever_and_dense(topic: Topic) -> None:
    """Offsets are positions of purchases: neither time nor size nor compaction may take a record away."""
    assert topic.config["cleanup.policy"] == "delete"
    assert topic.config["retention.ms"] == "-1"
    assert topic.config["retention.bytes"] == "-1"


@pytest.mark.parametrize("topic", [REQUESTS, DECISIONS], ids=lambda topic: topic.name)
def test_the_clock_of_the_log_is_the_brokers(topic: Topic) -> None:
    """A sale's window is judged by the append time: no client may set it."""
    assert topic.config["message.timestamp.type"] == "LogAppendTime"


def test_nothing_is_compacted_or_dropped_by_age() -> None:
    """Snapshots may be trimmed by size, since losing one costs only a refold; nothing else is trimmed at all."""
    for topic in TOPICS:
        assert topic.config["cleanup.policy"] == "delete"
        assert topic.config["retention.ms"] == "-1"
    trimmed = {topic.name for topic in TOPICS if int(topic.config.get("retention.bytes", "-1")) >= 0}
    assert trimmed == {"stampede.stock-snapshots"}


def test_answers_stand_in_the_partition_of_their_questions() -> None:
    """Same number of partitions everywhere, and a number that many replica counts divide."""
    assert {topic.partitions for topic in TOPICS} == {PARTITIONS}
    assert PARTITIONS == 12
    assert MESSAGE_BYTES_MAX == 1024 * 1024


def test_what_a_record_can_inflate_to_is_bounded() -> None:
    """The broker packs every record as lz4, at most 255 to 1, or refuses it: no zstd of kilobytes becomes gigabytes."""
    assert {topic.config["compression.type"] for topic in TOPICS} == {"lz4"}


def test_a_letter_can_be_as_large_as_the_record_it_buries() -> None:
    """Any that was not compressed can be buried whole, and the beginning of others; else a worker would never get past
    it."""
    record, letter = (int(topic.config["max.message.bytes"]) for topic in (REQUESTS, DEAD_LETTERS))
    assert record == int(DECISIONS.config["max.message.bytes"]) == MESSAGE_BYTES_MAX == WHOLE_BYTES_MAX
    assert letter >= record + KEPT_BYTES + LETTER_HEADERS_BYTES_MAX


def test_the_reader_of_older_requests_knows_every_type() -> None:
    """Upcasts are for types that exist, from versions below the present one."""
    assert {message.__name__ for message in get_args(AnyRequest)} == KNOWN_REQUEST_TYPES
    assert all(name in KNOWN_REQUEST_TYPES and version >= 1 for name, version in REQUEST_UPCASTS)
    assert {name for name, _ in DECISION_UPCASTS} <= {message.__name__ for message in get_args(AnyDecision)}
