"""`python -m gateway`: run one gateway until SIGTERM or SIGINT. Settings come from the environment."""

import asyncio
import logging
import signal
import sys

import uvloop
from confluent_kafka import KafkaException
from pydantic import ValidationError

from eventlog.kafka import TopicsWrong
from eventlog.reader import LogBroken
from gateway.app import CannotStart, Gateway
from gateway.identity import AuthenticationRefused
from gateway.settings import Settings
from telemetry.logs import configure_logs


def main() -> int:
    """The exit code: 0 after a graceful stop; otherwise one sentence on stderr says what is wrong."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # filled from the environment
    except ValidationError as error:
        wrong = "; ".join(f"STAMPEDE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        print(f"gateway: settings are wrong: {wrong}", file=sys.stderr)
        return 2
    configure_logs("gateway", settings.instance, settings.log_level)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings repeat what clients send
    try:
        uvloop.run(_run(settings))
    except (CannotStart, AuthenticationRefused, TopicsWrong, LogBroken) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    except KafkaException as error:
        print(f"gateway: Kafka at {settings.kafka} failed: {error.args[0].str()}", file=sys.stderr)
        return 1
    return 0


async def _run(settings: Settings) -> None:
    gateway = Gateway(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop)
    await gateway.run()


if __name__ == "__main__":
    sys.exit(main())
