"""`python -m order_writer` runs one; `migrate` brings the schema up to date; `recover` is for a restored database."""

import argparse
import asyncio
import gc
import signal
import sys

import uvloop
from confluent_kafka import KafkaException
from pydantic import ValidationError

from eventlog.kafka import TopicsWrong
from eventlog.reader import LogBroken
from order_writer import app
from order_writer.database import DatabaseWrong, open_pool
from order_writer.migrate import migrate
from order_writer.payment import ProviderWrong
from order_writer.recovery import recover
from order_writer.roles import parse_role
from order_writer.settings import Settings
from telemetry.logs import configure_logs

EXPECTED = (ProviderWrong, TopicsWrong, LogBroken, DatabaseWrong, KafkaException, OSError)


def main() -> int:
    """Command line; not 0 with one sentence on stderr when it cannot go on."""
    parser = argparse.ArgumentParser(prog="python -m order_writer", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "migrate", "recover"], default="run")
    command = parser.parse_args().command
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        return _fail(f"a STAMPEDE_ setting is wrong: {wrong}")
    try:
        if command == "migrate":
            texts = (settings.writer_role.get_secret_value(), settings.reader_role.get_secret_value())
            writer, reader = (parse_role(text) if text else None for text in texts)
            for refused in asyncio.run(migrate(settings.postgres, writer, reader)):
                print(f"order-writer: not done, do it by other means or go without: {refused}", file=sys.stderr)
            return 0
        if command == "recover":
            print(asyncio.run(_recover(settings)))
            return 0
        configure_logs("order-writer", settings.instance, settings.log_level)
        uvloop.run(_run(settings))
    except BaseExceptionGroup as group:
        expected, rest = group.split(EXPECTED)
        if rest or not expected:
            raise
        return _fail(_first(expected))
    except EXPECTED as error:
        return _fail(error)
    return 0


async def _run(settings: Settings) -> None:
    # Batches are thousands of objects without cycles: looking through them each 700 was half of an event's cost.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await app.run(settings, stopping)


async def _recover(settings: Settings) -> str:
    pool = await open_pool(settings.postgres, settings.instance, pooled=settings.postgres_pooled)
    try:
        done = await recover(settings.kafka, pool, settings.group)
    finally:
        await pool.close()
    return (
        f"Read {done.events:,} events of orders: {done.lifted:,} rows were older and begin above them now, "
        f"{done.dropped:,} messages of the copy had been sent. The order-writers may start."
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(error: BaseException | str) -> int:
    text = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    print(f"order-writer: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
