"""`python -m gateway`: run one gateway until SIGTERM or SIGINT. Settings come from the environment."""

import logging

import uvloop
from confluent_kafka import KafkaException

from eventlog.kafka import TopicsWrong
from eventlog.reader import LogBroken
from gateway.app import CannotStart, Gateway
from gateway.auth.authenticator import AuthenticationRefused
from gateway.settings import Settings
from service.run import run, settings_of


def main() -> None:
    """Exits with 0 after a graceful stop; otherwise one sentence on stderr says what is wrong."""
    settings = settings_of("gateway", Settings)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings repeat what clients send
    expected = (CannotStart, AuthenticationRefused, TopicsWrong, LogBroken, KafkaException)
    run("gateway", settings, Gateway(settings).run, *expected, loop=uvloop.new_event_loop)


if __name__ == "__main__":
    main()
