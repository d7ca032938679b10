"""`python -m order_writer` runs one; `migrate` brings the schema up to date; `recover` is for a restored database."""

import argparse
import asyncio
import gc
import sys

import uvloop
from confluent_kafka import KafkaException

from eventlog.kafka import TopicsWrong
from eventlog.reader import LogBroken
from order_writer import app
from order_writer.payments.provider import ProviderWrong
from order_writer.postgres.migrate import migrate
from order_writer.postgres.pool import DatabaseWrong, open_pool
from order_writer.postgres.roles import parse_role
from order_writer.restore.recover import recover
from order_writer.settings import Settings
from service.run import one_sentence, run, settings_of

NAME = "order-writer"
EXPECTED = (ProviderWrong, TopicsWrong, LogBroken, DatabaseWrong, KafkaException, OSError)


def main() -> None:
    """Command line; not 0 with one sentence on stderr when it cannot go on."""
    parser = argparse.ArgumentParser(prog="python -m order_writer", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "migrate", "recover"], default="run")
    command = parser.parse_args().command
    settings = settings_of(NAME, Settings)
    if command == "run":
        # Batches are thousands of objects without cycles: looking through them each 700 was half of an event's cost.
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        run(NAME, settings, lambda stopping: app.run(settings, stopping), *EXPECTED, loop=uvloop.new_event_loop)
        return
    with one_sentence(NAME, *EXPECTED):
        if command == "migrate":
            texts = (settings.writer_role.get_secret_value(), settings.reader_role.get_secret_value())
            writer, reader = (parse_role(text) if text else None for text in texts)
            for refused in asyncio.run(migrate(settings.postgres, writer, reader)):
                print(f"{NAME}: not done, do it by other means or go without: {refused}", file=sys.stderr)
        else:
            print(asyncio.run(_recover(settings)))


async def _recover(settings: Settings) -> str:
    async with await open_pool(settings.postgres, settings.instance, pooled=settings.postgres_pooled) as pool:
        return await recover(settings.kafka, pool, settings.group)


if __name__ == "__main__":
    main()
