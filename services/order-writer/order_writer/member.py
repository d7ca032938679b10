"""What both consumers of the order-writer share: how they belong to their group, and how long a broker may hesitate."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

KAFKA_PATIENCE_S = 10.0
# A writer that waits out a database outage stays in its group; whether it is stuck is the liveness probe's to say.
POLL_PAUSE_MS_MAX = 3_600_000

T = TypeVar("T")
# What a broker says of a topic that was just made, or while it elects.
_SOON = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
}


def member_settings(group: str, instance: str, session_timeout_s: int) -> dict[str, Any]:
    """Client settings of a member of a consumer group."""
    return {
        "group.id": group,
        # A restart takes its partitions back at once instead of waiting for its former self's session to end.
        "group.instance.id": instance,
        "session.timeout.ms": session_timeout_s * 1000,
        "max.poll.interval.ms": POLL_PAUSE_MS_MAX,
    }


def patiently(work: Callable[[], T]) -> T:
    """Do `work` again while Kafka says that it will work soon (a leader is being elected); for ten seconds.

    Raises:
        KafkaException: it still does not.
    """
    deadline = time.monotonic() + KAFKA_PATIENCE_S
    while True:
        try:
            return work()
        except KafkaException as error:
            if error.args[0].code() not in _SOON or time.monotonic() > deadline:
                raise
        time.sleep(KAFKA_PATIENCE_S / 100)
