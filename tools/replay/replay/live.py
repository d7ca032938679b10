"""Fetches evidence from a running system: Kafka, Postgres, the workers' `/state`. Reads only, in an order that matters.

What is compared with the log is read before the log, so that the log always holds at least what the others know.
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from confluent_kafka import Consumer, KafkaException, Message
from msgspec import DecodeError

from eventlog.kafka import TopicsWrong, consumer, read_range, topic_ids, watermarks
from eventlog.reader import LogBroken
from replay import provider_statement
from replay.contract import OrderEvent, read_order_event
from replay.evidence import (
    Applied,
    Catalogued,
    CommandRecord,
    Database,
    Evidence,
    Letter,
    Partition,
    Record,
    Row,
    State,
)
from replay.failure import CannotCheck
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, ORDER_COMMANDS, ORDERS, PARTITIONS, REQUESTS, Topic

STATE_WAIT_S_MAX = 30.0
STATE_POLL_S = 0.2
CONNECT_S_MAX = 10.0
STATE_ANSWER_S_MAX = 4.0  # a worker answers, or says that it is busy, within 2 s; a frozen one never does
PREFIX = "stampede."

Tell = Callable[[str, int, int], None]  # what is being read, how much of it is done, of how much

ROWS = """
SELECT purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency,
       payment_method, fingerprint, partition, source_offset, source_index,
       (extract(epoch FROM hold_until) * 1000)::bigint AS hold_until_ms, stock_returned_at IS NOT NULL AS returned,
       version, (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at_ms
FROM purchases"""
NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the system is. `inventory` are the ops URLs of its workers."""

    kafka: str
    postgres: str
    inventory: list[str]


def addresses(path: Path) -> Addresses:
    """From `endpoints.json`.

    Raises:
        CannotCheck: there is none.
    """
    try:
        found = json.loads(path.read_text())
        workers = [worker["ops"] for worker in found["processes"]["inventory"]]
        return Addresses(found["kafka"], found["postgres"], workers)
    except FileNotFoundError:
        raise CannotCheck(f"{path} is not there: start the stack first, or name another with --endpoints.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CannotCheck(f"{path} does not say where the system is ({error!r}).") from None


def whole_system(endpoints: Path) -> Evidence:
    """Everything there is, what the workers say of their tables included.

    Raises:
        CannotCheck: a part of it does not answer.
    """
    return system(endpoints, states(addresses(endpoints).inventory))


def system(endpoints: Path, known: list[State] | None, tell: Tell = lambda *_: None) -> Evidence:
    """Everything there is: rows, then the log, then the provider statement; each holds what those before speak of.

    `known` is what the workers say of their tables (`states`), which is asked for first.

    Raises:
        CannotCheck: a part of it does not answer.
    """
    where = addresses(endpoints)
    rows = database(where.postgres)
    evidence = log(where.kafka, tell=tell)
    evidence.states, evidence.database = known, rows
    evidence.payments = provider_statement.beside(endpoints)
    return evidence


def log(kafka: str, partitions: Iterable[int] = range(PARTITIONS), tell: Tell = lambda *_: None) -> Evidence:
    """Everything in the log now. Decisions are read first: whatever they answer is in `requests` by then.

    Raises:
        CannotCheck: the broker is not there, or its topics are not those of the registry.
    """
    began = time.time_ns() // 1_000_000
    client = consumer(kafka, **{"fetch.wait.max.ms": 10})
    try:
        topic_ids(kafka, (REQUESTS, DECISIONS, ORDERS, ORDER_COMMANDS, DEAD_LETTERS))
        found = {number: Partition(number) for number in partitions}
        ends = {number: watermarks(client, DECISIONS.name, number) for number in found}
        total = 2 * sum(end - first for first, end in ends.values()) or 1
        done = 0

        def read(topic: Topic, number: int) -> Iterator[Message]:
            nonlocal done
            for message in _whole(client, topic.name, number):
                done += 1
                if done % 2_000 == 0:
                    tell(topic.name, done, max(done, total))
                yield message

        for number, partition in found.items():
            partition.decisions += map(_record, read(DECISIONS, number))
        for number, partition in found.items():
            partition.requests += map(_record, read(REQUESTS, number))
        letters = [_letter(number, message) for number in range(PARTITIONS) for message in read(DEAD_LETTERS, number)]
        orders = [_event(message) for number in range(PARTITIONS) for message in read(ORDERS, number)]
        commands = [
            _command(number, message) for number in range(PARTITIONS) for message in read(ORDER_COMMANDS, number)
        ]
        tell("records", done, done)
    except TopicsWrong as error:
        raise CannotCheck(str(error)) from None
    except KafkaException as error:
        raise CannotCheck(f"Kafka at {kafka} does not answer ({error.args[0].str()}): is it running?") from None
    except LogBroken as error:
        raise CannotCheck(f"the log could not be read to its end: {error}.") from None
    finally:
        client.close()
    known = [event for event in orders if event is not None]
    return Evidence(found, began, kafka, letters=letters, orders=known, commands=commands)


def ids(kafka: str) -> dict[str, str]:
    """Kafka's ids of the two topics that make a sale. Raises CannotCheck."""
    try:
        return topic_ids(kafka, (REQUESTS, DECISIONS))
    except (TopicsWrong, KafkaException) as error:
        raise CannotCheck(f"the topics' ids are not to be had: {error}") from None


def _whole(client: Consumer, topic: str, number: int) -> Iterator[Message]:
    first, end = watermarks(client, topic, number)
    return read_range(client, topic, number, first, end)


def _record(message: Message) -> Record:
    offset, value = message.offset(), message.value()
    assert offset is not None
    assert value is None or isinstance(value, bytes)
    return Record(offset, message.timestamp()[1], value)


def _letter(number: int, message: Message) -> Letter:
    record = _record(message)
    headers = {name: value.decode(errors="replace") for name, value in _headers(message)}
    parts = [headers.get(name, "") for name in ("topic", "partition", "offset", "index")]
    source = "/".join(part for part in parts if part).removeprefix(PREFIX)
    reason, own = headers.get("reason", ""), tuple(_headers(message))
    return Letter(number, record.offset, record.at_ms, source, reason, record.value or b"", own)


def _command(number: int, message: Message) -> CommandRecord:
    record = _record(message)
    return CommandRecord(number, record.offset, record.at_ms, record.value or b"")


def _headers(message: Message) -> list[tuple[str, bytes]]:
    headers: Any = message.headers() or []
    return [(name, value or b"") for name, value in headers]


def _event(message: Message) -> OrderEvent | None:
    try:
        return read_order_event(_record(message).value or b"")
    except DecodeError:
        return None  # other programs may read the topic strictly; here a status is all that is wanted


def database(dsn: str) -> Database:
    """What Postgres says, all in one snapshot.

    Raises:
        CannotCheck: it is not there, or holds no tables of ours.
    """
    try:
        return asyncio.run(_database(dsn))
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        said = str(error) or type(error).__name__
        raise CannotCheck(f"Postgres does not answer ({said}): is it running, and migrated?") from None


async def _database(dsn: str) -> Database:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_S_MAX)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = {record["purchase_id"]: _row(record) for record in await connection.fetch(ROWS)}
            products = await connection.fetch("SELECT product_id, stock, available, partition FROM products")
            progress = await connection.fetch("SELECT * FROM progress")
            now_ms = await connection.fetchval(NOW)
    finally:
        await connection.close()
    return Database(
        now_ms,
        rows,
        {found["product_id"]: Catalogued(found["stock"], found["available"], found["partition"]) for found in products},
        {found["partition"]: Applied(*(found[name] for name in Applied._fields)) for found in progress},
    )


def _row(record: Any) -> Row:
    values = tuple(record)
    return Row._make([*values[:11], tuple(values[11:14]), *values[14:]])


def states(workers: list[str], partitions: Iterable[int] = range(PARTITIONS)) -> list[State]:
    """What each worker says of the partitions it owns.

    Raises:
        CannotCheck: for one of them nobody answers within 30 s.
    """
    if not workers:
        raise CannotCheck("no inventory worker runs that could say what it knows.")
    found: list[State] = []
    for number in partitions:
        deadline = time.monotonic() + STATE_WAIT_S_MAX
        while not (told := [state for worker in workers if (state := _state(worker, number)) is not None]):
            if time.monotonic() > deadline:
                raise CannotCheck(f"no inventory worker says what it knows of partition {number}: are they running?")
            time.sleep(STATE_POLL_S)
        found += told
    return found


def _state(worker: str, number: int) -> State | None:
    try:
        with urllib.request.urlopen(f"{worker}/state?partition={number}", timeout=STATE_ANSWER_S_MAX) as answer:  # noqa: S310 - an address of endpoints.json
            said = json.loads(answer.read())
    except (OSError, ValueError):
        return None  # not the owner, or busy
    return State(number, said["source_offset"], said["sha256"])
