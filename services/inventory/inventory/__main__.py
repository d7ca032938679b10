"""`python -m inventory`: run one inventory worker until SIGTERM or Ctrl-C."""

import asyncio
import logging

from confluent_kafka import KafkaException

from eventlog.kafka import TopicsWrong
from eventlog.reader import LogBroken
from inventory.app import Inventory, wait_for_restart_cooldown
from inventory.settings import Settings
from service.run import run, settings_of


def main() -> None:
    """Exits with 0 after an orderly stop; otherwise one sentence on stderr says what is wrong."""
    settings = settings_of("inventory", Settings)
    for noisy in ("faust", "aiokafka", "mode"):
        # Their debug records are built even when filtered; INFO is hundreds of lines at each rebalance.
        logging.getLogger(noisy).setLevel(logging.WARNING)

    async def serve(stopping: asyncio.Event) -> None:
        wait_for_restart_cooldown(settings)
        await Inventory(settings).run(stopping)

    run("inventory", settings, serve, TopicsWrong, LogBroken, OSError, KafkaException)


if __name__ == "__main__":
    main()
