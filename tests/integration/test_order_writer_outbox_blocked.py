"""What cannot be sent holds up nothing else: the relay passes over it, and says so; nothing is given up."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from eventlog.kafka import topic_ids
from order_writer.ops.health import Health
from order_writer.ops.metrics import Metrics
from order_writer.outbox.messages import Outgoing, decode_outbox, encode_outbox
from order_writer.outbox.relay import Relay
from order_writer.postgres.pool import Pool
from stampede_schemas.dead_letters import KEPT_BYTES
from stampede_schemas.topics import DEAD_LETTERS, MESSAGE_BYTES_MAX, ORDERS, REQUESTS
from tests.support.builders.orders import Installation, empty, until
from tests.support.processes.servers import configure

BLOCKED = 41  # more than the relay takes in one round
SENT_S_MAX = 1.0
TOO_LARGE = 3 * MESSAGE_BYTES_MAX
INSERT = "INSERT INTO outbox (messages) VALUES ($1)"
LEFT = "SELECT messages FROM outbox ORDER BY id"


class BlockedByItsHead(Relay):
    """Takes the oldest rows again and again: as the relay once did."""

    async def round(self) -> bool:
        """Nothing is passed over."""
        self._passed_over.clear()
        return await super().round()


@contextlib.asynccontextmanager
async def pool_of(place: Installation) -> AsyncIterator[Pool]:
    """Connections beside any writer's."""
    async with asyncpg.create_pool(place.postgres, min_size=1, max_size=4) as pool:
        yield pool


@contextlib.asynccontextmanager
async def relaying(place: Installation, pool: Pool, kind: type[Relay] = Relay) -> AsyncIterator["asyncio.Task[None]"]:
    """A relay of its own, asked to stop at the end."""
    stopping = asyncio.Event()
    task = asyncio.create_task(kind(place.kafka, "relay", pool, asyncio.Event(), lambda: None).run(stopping))
    try:
        yield task
    finally:
        stopping.set()
        await task


def order_event(value: bytes, partition: int = 0) -> Outgoing:
    """What the relay takes for an event of an order; one over the limit can never be sent, and is never given up."""
    return Outgoing(ORDERS.name, partition, None, value, [])


def letter(value: bytes, number: int = 0) -> Outgoing:
    """A dead letter as an earlier version left it in the outbox: whole, whatever its size."""
    about = [("reason", b"not_a_command"), ("topic", b"stampede.order-commands"), ("partition", b"6")]
    about += [("offset", b"%d" % number), ("original.shade", b"grey")]
    return Outgoing(DEAD_LETTERS.name, 0, b"order-commands/6/%d" % number, value, about)


async def sent_in_time(place: Installation, pool: Pool, topic: str, message: Outgoing) -> bool:
    """Put a row behind the others; whether its message is in the topic within a second."""
    await pool.execute(INSERT, encode_outbox([message]))
    deadline = time.monotonic() + SENT_S_MAX
    while message.value not in await asyncio.to_thread(place.values, topic):
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.parametrize("kind", [Relay, BlockedByItsHead])
async def test_what_cannot_be_sent_holds_up_nothing_behind_it(place: Installation, kind: type[Relay]) -> None:
    """41 rows that no broker takes at the head: releases and events behind them, on this and on another partition, are
    sent within a second, and the 41 stay. A relay that takes the oldest rows first is found by this."""
    async with pool_of(place) as pool, relaying(place, pool, kind):
        for number in range(BLOCKED):
            await pool.execute(INSERT, encode_outbox([order_event(b"%d" % number + bytes(TOO_LARGE))]))
        sent = [
            await sent_in_time(place, pool, ORDERS.name, order_event(b"this partition")),
            await sent_in_time(place, pool, ORDERS.name, order_event(b"another one", 7)),
            await sent_in_time(place, pool, REQUESTS.name, Outgoing(REQUESTS.name, 3, None, b"a release", [])),
        ]
        assert sent == [kind is Relay] * 3
        if kind is Relay:
            await until(lambda: remaining(pool, BLOCKED), "the others stay")


async def remaining(pool: Pool, count: int) -> bool:
    """Whether so many rows wait."""
    return bool(await pool.fetchval("SELECT count(*) FROM outbox") == count)


async def test_letters_that_can_never_be_sent_are_cut_to_fit(place: Installation) -> None:
    """41 of three megabytes, left by an earlier version: each lies there with size, hash, position and beginning."""
    values = [b"%04d" % number + bytes(TOO_LARGE) for number in range(BLOCKED)]
    async with pool_of(place) as pool:
        for number, value in enumerate(values):
            await pool.execute(INSERT, encode_outbox([letter(value, number)]))
        async with relaying(place, pool):
            await until(lambda: empty(place), "all are sent", 30.0)
    letters = await asyncio.to_thread(place.records, DEAD_LETTERS.name)
    assert len(letters) == BLOCKED
    for sent in letters:
        headers: dict[str, Any] = dict(sent.headers() or [])
        value = values[int(headers["offset"])]
        assert sent.value() == value[:KEPT_BYTES]
        digest = hashlib.sha256(value).hexdigest().encode()
        assert (headers["size"], headers["sha256"]) == (b"%d" % len(value), digest)
        assert (headers["reason"], headers["partition"], headers["kept"]) == (b"not_a_command", b"6", b"65536")


async def test_a_letter_that_the_broker_refuses_is_cut_too(place: Installation) -> None:
    """Somebody made the topic's limit small: the client would take the letter."""
    large = random_bytes(512 * 1024)
    limit_letters(place.kafka, 128 * 1024)
    try:
        async with pool_of(place) as pool, relaying(place, pool):

            async def one_is_cut() -> bool:
                await pool.execute(INSERT, encode_outbox([letter(large)]))
                await until(lambda: empty(place), "it is sent", 30.0)
                sent = await asyncio.to_thread(place.records, DEAD_LETTERS.name)
                return sent[-1].value() == large[:KEPT_BYTES]

            # The broker says that the limit has changed a moment before it has.
            await until(one_is_cut, "the limit is in force, and the letter fits", 60.0)
    finally:
        limit_letters(place.kafka, int(DEAD_LETTERS.config["max.message.bytes"]))


async def test_of_a_transaction_only_what_failed_is_sent_again(place: Installation) -> None:
    """Its other messages leave the row at once: they are not repeated every few seconds for as long as one fails."""
    large = order_event(bytes(TOO_LARGE))
    async with pool_of(place) as pool, relaying(place, pool):
        await pool.execute(INSERT, encode_outbox([order_event(b"one"), large, order_event(b"two")]))
        await until(lambda: only_left(pool, large), "the others have left the row")
    assert await asyncio.to_thread(place.values, ORDERS.name) == [b"one", b"two"]


async def only_left(pool: Pool, message: Outgoing) -> bool:
    """Whether this message alone waits."""
    return [it for row in await pool.fetch(LEFT) for it in decode_outbox(row["messages"])] == [message]


async def test_an_outbox_that_stands_still_is_seen(place: Installation) -> None:
    """Its age is a metric and a check of readiness: with 41 letters that block it, all was well once."""
    stopping, metrics = asyncio.Event(), Metrics("test")
    async with pool_of(place) as pool, asyncio.TaskGroup() as group:
        await pool.execute("INSERT INTO outbox (messages) VALUES ($1)", encode_outbox([order_event(b"waits")]))
        health = Health(place.kafka, await asyncio.to_thread(topic_ids, place.kafka), pool, metrics, stopping)
        group.create_task(health.watch())
        await until(lambda: says(health, True), "young: ready")
        await pool.execute("UPDATE outbox SET created_at = now() - interval '41 seconds'")
        await until(lambda: says(health, "something waits for 41 s to be sent"), "old: not ready", 5.0)
        assert (metrics.registry.get_sample_value("stampede_outbox_age_seconds") or 0) > 40
        await pool.execute("DELETE FROM outbox")
        await until(lambda: says(health, True), "empty: ready again", 5.0)
        stopping.set()


async def says(health: Health, wanted: bool | str) -> bool:
    """What readiness says of the outbox, give or take some seconds of age."""
    said = health.ready()["outbox"]
    if not isinstance(wanted, str):
        return said == wanted and health.ready()["postgres"] is True
    return isinstance(said, str) and said.split(" for 4")[0] == wanted.split(" for 4")[0]


def random_bytes(size: int) -> bytes:
    """Always the same, and not to be compressed."""
    return b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(size // 32))


def limit_letters(kafka: str, size: int) -> None:
    """Change the limit of `dead-letters` at the broker."""
    configure(kafka, DEAD_LETTERS, "max.message.bytes", str(size))
