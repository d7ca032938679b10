"""An order-writer that looks for unread partitions impatiently: `python -m tests.support.faults.stalling`.

With $STALLED its client leaves that partition of `decisions` unread, as librdkafka has done.
"""

import os
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from eventlog.reader import Progress
from order_writer import __main__ as program
from order_writer import app
from order_writer.consume import progress_consumer
from order_writer.consume.progress_consumer import ProgressConsumer
from stampede_schemas.topics import DECISIONS
from tests.planted.builds.planting import exchange

PARTITION = "STALLED"
LOOKS_MAX = 3


class LeavesOneUnread(ProgressConsumer[Any]):
    """Reads all others."""

    def _go_to(self, client: Consumer, stored: dict[int, Progress]) -> None:
        super()._go_to(client, stored)
        if self._topic == DECISIONS.name:
            client.pause([TopicPartition(self._topic, int(os.environ[PARTITION]))])


if __name__ == "__main__":
    exchange(progress_consumer, UNREAD_LOOKS_MAX=LOOKS_MAX)
    if PARTITION in os.environ:
        exchange(app, ProgressConsumer=LeavesOneUnread)
    program.main()
