"""Sends the bytes of a dead letter once more to where they came from: the one command here that writes to the system.

Whether a letter was redriven is read from the log, where each redriven record names its letter's source in a header.
So repeating a redrive sends nothing, and a record that was redriven and died again is not sent a third time: no loop.
"""

from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from eventlog.kafka import consumer, producer, read_one, read_range, watermarks
from eventlog.reader import LogBroken
from replay.evidence import Letter
from replay.failure import CannotCheck
from stampede_schemas.topics import ORDER_COMMANDS, REQUESTS, Topic

HEADER = "redriven_of"
ACKNOWLEDGE_S_MAX = 10.0
RECORD_BYTES_MAX = 1_000_000_000  # of one that the broker took: its own limit is one of the compressed form
TAKES_BACK: dict[str, Topic] = {"requests": REQUESTS, "order-commands": ORDER_COMMANDS}


class Redriven(NamedTuple):
    """Where the letter's bytes stand again; `sent` is False if they stood there before."""

    source: str
    at: str
    sent: bool


def redrive(kafka: str, letter: Letter) -> Redriven:
    """Append the letter's bytes to the topic and partition of its source, unless that was done before.

    Of a letter that holds only a beginning, the bytes are those of its source.

    Raises:
        CannotCheck: they must not be sent again, or the broker did not take them.
    """
    name, partition, offset = _place(letter.source)
    client = consumer(kafka)
    try:
        topic = TAKES_BACK[name]
        original = read_one(client, topic.name, partition, offset)
        if came_of := dict(_headers(original)).get(HEADER):
            raise CannotCheck(
                f"{letter.source} was redriven before, from {came_of.decode()}, and died again. Once is enough: see to "
                "its cause, then send what it asks for anew."
            )
        if known := _sent_before(client, topic, partition, offset, letter.source):
            return Redriven(letter.source, f"{name}/{partition}/{known}", sent=False)
        at = _send(kafka, topic, partition, original, letter)
    except LogBroken as error:
        raise CannotCheck(f"the record of {letter.source} cannot be read any more: {error}.") from None
    except KafkaException as error:
        raise CannotCheck(f"Kafka at {kafka} does not answer ({error.args[0].str()}): is it running?") from None
    finally:
        client.close()
    return Redriven(letter.source, f"{name}/{partition}/{at}", sent=True)


def _place(source: str) -> tuple[str, int, int]:
    name, *numbers = source.split("/")
    if name not in TAKES_BACK:
        raise CannotCheck(
            f"{source} cannot be redriven: only the inventory writes {name}. What was held there was released with the "
            "letter; nothing is open."
        )
    try:
        return name, int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError):
        raise CannotCheck(f"{source} does not say where its record stood.") from None


def _sent_before(client: Consumer, topic: Topic, partition: int, offset: int, source: str) -> int | None:
    _, end = watermarks(client, topic.name, partition)
    for message in read_range(client, topic.name, partition, offset + 1, end):
        if dict(_headers(message)).get(HEADER) == source.encode():
            return message.offset()
    return None


def _send(kafka: str, topic: Topic, partition: int, original: Message, letter: Letter) -> int:
    landed: list[int] = []

    def report(error: KafkaError | None, message: Message) -> None:
        offset = message.offset()
        if error is None and offset is not None:
            landed.append(offset)

    # A letter of one request in a readable batch holds that request alone: it goes back as a batch of one.
    whole = original.value() or b""
    alone = topic is REQUESTS and not letter.cut and letter.value != whole
    value = b'{"requests":[' + letter.value + b"]}" if alone else whole
    headers: list[tuple[str, str | bytes | None]] = [*_headers(original), (HEADER, letter.source)]
    client = producer(kafka, **{"message.max.bytes": RECORD_BYTES_MAX})
    client.produce(topic.name, value, original.key(), partition, on_delivery=report, headers=headers)
    client.flush(ACKNOWLEDGE_S_MAX)
    if not landed:
        raise CannotCheck(
            f"Kafka did not acknowledge {letter.source}: redrive it again, it will not stand there twice."
        )
    return landed[0]


def _headers(message: Message) -> list[tuple[str, bytes]]:
    headers: Any = message.headers() or []
    return [(name, value or b"") for name, value in headers]
