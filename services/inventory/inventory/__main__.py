"""`python -m inventory`: run one inventory worker until SIGTERM or Ctrl-C."""

import asyncio
import logging
import signal
import sys

from confluent_kafka import KafkaException
from pydantic import ValidationError

from eventlog.kafka import TopicsWrong
from eventlog.reader import LogBroken
from inventory.app import Inventory, wait_outside
from inventory.settings import Settings
from telemetry.logs import configure_logs


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Inventory(settings).run(stop)


def main() -> int:
    """Exit 0 after an orderly stop, 1 with one sentence otherwise."""
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = "; ".join(f"STAMPEDE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        print(f"inventory: {wrong}", file=sys.stderr)
        return 1
    configure_logs("inventory", settings.instance, settings.log_level)
    for noisy in ("faust", "aiokafka", "mode"):
        # Their debug records are built even when filtered; INFO is hundreds of lines at each rebalance.
        logging.getLogger(noisy).setLevel(logging.WARNING)
    wait_outside(settings)
    try:
        asyncio.run(_serve(settings))
    except (TopicsWrong, LogBroken, OSError) as error:
        print(f"inventory: {error}", file=sys.stderr)
        return 1
    except KafkaException as error:
        print(f"inventory: Kafka at {settings.kafka}: {error.args[0].str()}. Is it running there?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
