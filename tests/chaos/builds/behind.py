"""A gateway whose view is behind: it hears of decisions and order events later than the broker tells of them.

Both sides are here: the runner leaves `INSTANCE.behind` with the most seconds that a turn of records may be late.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer

from gateway.read_side.follower import Follower
from tests.chaos.builds.points import FOLDER


class _Late:
    """A consumer that keeps what it was given for a while."""

    def __init__(self, consumer: Consumer, order: Path) -> None:
        self._consumer, self._order = consumer, order

    def poll(self, timeout: float) -> Any:
        """See Consumer."""
        message = self._consumer.poll(timeout)
        if message is not None:
            with contextlib.suppress(FileNotFoundError):
                time.sleep(random.uniform(0.0, float(self._order.read_text())))
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


class LateFollower(Follower):
    """The gateway's reader of the log, with such a consumer."""

    def _follow(self, client: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        late: Any = _Late(client, order(Path(os.environ[FOLDER]), os.environ["STAMPEDE_INSTANCE"]))
        super()._follow(late, loop)


@contextmanager
def behind(folder: Path, instances: Sequence[str], by_s: float) -> Iterator[None]:
    """For the length of a block."""
    orders = [order(folder, instance) for instance in instances]
    for one in orders:
        part = one.with_suffix(".part")
        part.write_text(str(by_s))
        part.replace(one)
    try:
        yield
    finally:
        for one in orders:
            one.unlink(missing_ok=True)


def order(folder: Path, instance: str) -> Path:
    """Where it stands how late an instance is."""
    return folder / f"{instance}.behind"
