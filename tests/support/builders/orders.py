"""Builders for the order-writer: decisions, a log of them with a valid chain, and an installation to run against."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import cached_property, partial

import asyncpg
from confluent_kafka import Message, Producer
from confluent_kafka.admin import NewTopic

from eventlog.kafka import admin_client, consumer, producer, read_range, retry_on_election, watermarks
from order_writer import app
from order_writer.outbox.messages import Outgoing, decode_outbox
from order_writer.payments.provider import Provider
from order_writer.postgres.migrate import migrate
from order_writer.saga.orders import Order
from order_writer.settings import Settings
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.codec import decode_order_event, decode_request, encode, encode_decisions, split_requests
from stampede_schemas.decisions import AnyDecision, ProductListed, Rejected, RejectReason, Released, Reserved, Restocked
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId, RequestId, WriterEpoch
from stampede_schemas.order_commands import AnyCommand, CancelProductRequested
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import AnyRequest, ReleaseReason
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, ORDER_COMMANDS, ORDERS, REQUESTS, TOPICS, partition_of
from tests.support.processes.servers import fetch
from tests.support.processes.stack import eventually

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_databases = itertools.count()


def listed(product_id: str = "shoe", stock: int = 100) -> ProductListed:
    """A product on sale."""
    return ProductListed(
        request_id=RequestId(f"list-{product_id}"),
        product_id=ProductId(product_id),
        name="Shoe",
        unit_price_minor=4_200,
        currency="EUR",
        stock=stock,
        per_buyer_limit=10,
        hold_ms=60_000,
        status="open",
        available_after=stock,
    )


def reserved(
    purchase_id: str,
    number: int,
    *,
    product_id: str = "shoe",
    method: str = "ok",
    quantity: int = 2,
    hold_ms: int = 60_000,
    available: int = 0,
    traceparent: str | None = None,
) -> Reserved:
    """Stock held for one purchase; its reservation number is the caller's to keep unique."""
    return Reserved(
        purchase_id=PurchaseId(purchase_id),
        buyer_id=BuyerId(f"buyer-of-{purchase_id}"),
        product_id=ProductId(product_id),
        quantity=quantity,
        payment_method=method,
        fingerprint="f" * 16,
        available_after=available,
        traceparent=traceparent,
        reservation_no=number,
        unit_price_minor=4_200,
        currency="EUR",
        hold_ms=hold_ms,
    )


def rejected(
    purchase_id: str, *, product_id: str = "shoe", method: str = "ok", reason: RejectReason = "sold_out"
) -> Rejected:
    """The final no."""
    return Rejected(
        purchase_id=PurchaseId(purchase_id),
        buyer_id=BuyerId(f"buyer-of-{purchase_id}"),
        product_id=ProductId(product_id),
        quantity=2,
        payment_method=method,
        fingerprint="f" * 16,
        available_after=0,
        reason=reason,
    )


def restocked(product_id: str = "shoe", quantity: int = 1) -> Restocked:
    """Units added."""
    return Restocked(
        request_id=RequestId(secrets.token_hex(8)),
        product_id=ProductId(product_id),
        quantity=quantity,
        available_after=quantity,
    )


def released(
    purchase_id: str,
    reservation: Position,
    *,
    product_id: str = "shoe",
    reason: ReleaseReason = "payment_declined",
    available: int = 2,
) -> Released:
    """The units of a reservation are back."""
    return Released(
        purchase_id=PurchaseId(purchase_id),
        buyer_id=BuyerId(f"buyer-of-{purchase_id}"),
        product_id=ProductId(product_id),
        quantity=2,
        payment_method="ok",
        fingerprint="f" * 16,
        available_after=available,
        reservation=reservation,
        reason=reason,
    )


def order(purchase_id: str = "p1") -> Order:
    """Two shoes for 42.00 each."""
    return Order(
        PurchaseId(purchase_id),
        "buyer",
        ProductId("shoe"),
        2,
        Position(3, 7, 0),
        1,
        4_200,
        "EUR",
        "ok",
        TRACEPARENT,
    )


@dataclass
class DecisionsLog:
    """Writes `decisions` as one inventory worker would: one load per partition, each record the next in its chain."""

    kafka: str
    load: WriterEpoch = field(default_factory=lambda: WriterEpoch(secrets.token_hex(16)))
    sources: dict[int, int] = field(default_factory=dict)
    headers: list[tuple[str, str | bytes | None]] = field(default_factory=list)

    @cached_property
    def producer(self) -> Producer:
        """One for all appends: connecting takes longer than appending."""
        return producer(self.kafka, **{"linger.ms": 1})

    def append(self, partition: int, *records: Sequence[AnyDecision]) -> list[int]:
        """Append counting records, each the answer to one `requests` record; returns those requests' offsets."""
        first = self.sources.get(partition, 0)
        numbers = list(range(first, first + len(records)))
        self.sources[partition] = first + len(records)
        values = [
            encode_decisions(n, 0, self.load, 0, Millis(1_700_000_000_000), list(decisions))
            for n, decisions in zip(numbers, records, strict=True)
        ]
        self.append_raw(partition, *values)
        return numbers

    def append_raw(self, partition: int, *values: bytes) -> None:
        """Append anything."""
        for value in values:
            self.producer.produce(DECISIONS.name, value, partition=partition, headers=self.headers)
            self.producer.poll(0)
        assert self.producer.flush(30) == 0


@dataclass
class Installation:
    """Topics created anew and a database of its own."""

    kafka: str
    postgres: str
    log: DecisionsLog

    def settings(self, instance: str = "order-writer-0", **changes: object) -> Settings:
        """Settings of one writer here."""
        values = {"kafka": self.kafka, "postgres": self.postgres, "instance": instance, "session_timeout_s": 6}
        return Settings.model_validate(values | changes)

    @contextlib.asynccontextmanager
    async def writer(
        self, instance: str = "order-writer-0", provider: Provider | None = None, **changes: object
    ) -> AsyncIterator["asyncio.Task[None]"]:
        """One writer in this process, asked to stop at the end."""
        stopping = asyncio.Event()
        task = asyncio.create_task(app.run(self.settings(instance, **changes), stopping, provider))
        try:
            yield task
        finally:
            stopping.set()
            if not task.done():
                async with asyncio.timeout(10):
                    await task

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database."""
        return await fetch(self.postgres, query, *arguments)

    async def value(self, query: str, *arguments: object) -> object:
        """The first column of the first row."""
        rows = await self.rows(query, *arguments)
        return rows[0][0] if rows else None

    async def statuses(self) -> dict[str, str]:
        """Status by purchase."""
        return {row[0]: row[1] for row in await self.rows("SELECT purchase_id, status FROM purchases")}

    def requests(self) -> list[tuple[int, AnyRequest]]:
        """Everything on `requests`, with its partition."""
        return [
            (partition, decode_request(raw))
            for partition, value in _values(self.kafka, REQUESTS.name)
            for raw in split_requests(value)
        ]

    def events(self) -> list[AnyOrderEvent]:
        """Everything on `orders`."""
        return [decode_order_event(value) for _, value in _values(self.kafka, ORDERS.name)]

    def values(self, topic: str) -> list[bytes]:
        """The value of every record of a topic."""
        return [value for _, value in _values(self.kafka, topic)]

    def records(self, topic: str) -> list[Message]:
        """Every record of a topic, whole."""
        return list(_records(self.kafka, topic))

    def command(self, *commands: AnyCommand) -> None:
        """Append to `order-commands`."""
        self.append_commands(
            *(
                (partition_of(it.product_id if isinstance(it, CancelProductRequested) else it.purchase_id), encode(it))
                for it in commands
            )
        )

    def append_commands(self, *placed: tuple[int, bytes]) -> None:
        """Append any bytes to partitions of `order-commands`."""
        client = producer(self.kafka)
        for partition, value in placed:
            client.produce(ORDER_COMMANDS.name, value, partition=partition)
        assert client.flush(30) == 0


def _values(kafka: str, topic: str) -> list[tuple[int, bytes]]:
    return [(message.partition() or 0, message.value() or b"") for message in _records(kafka, topic)]


def _records(kafka: str, topic: str) -> Iterator[Message]:
    client = consumer(kafka)
    try:
        for partition in range(12):
            ends = retry_on_election(partial(watermarks, client, topic, partition))
            yield from read_range(client, topic, partition, *ends)
    finally:
        client.close()


async def until(
    condition: Callable[[], Awaitable[object]],
    what: str,
    wait_s: float = 20.0,
    task: "asyncio.Task[None] | None" = None,
) -> None:
    """Wait until the condition holds; fail when it does not in time, or when `task` ended before."""
    deadline = asyncio.get_running_loop().time() + wait_s
    while not await condition():
        if task is not None and task.done():
            task.result()
            raise AssertionError(f"the writer ended before: {what}")
        assert asyncio.get_running_loop().time() < deadline, f"not within {wait_s:.0f} s: {what}"
        await asyncio.sleep(0.05)


def new_topics(kafka: str) -> None:
    """Delete the topics, make them anew, and wait until every partition has a leader."""
    admin, names = admin_client(kafka), {topic.name for topic in TOPICS}

    def led() -> bool:
        found = admin.list_topics(timeout=10).topics
        return names <= found.keys() and all(
            partition.leader >= 0 for name in names for partition in found[name].partitions.values()
        )

    wait(admin.delete_topics(list(names), operation_timeout=20).values())
    eventually(lambda: not names & admin.list_topics(timeout=10).topics.keys(), what="the topics' end")
    wait(
        admin.create_topics(
            [NewTopic(topic.name, topic.partitions, 1, config=topic.config) for topic in TOPICS], operation_timeout=20
        ).values()
    )
    eventually(led, what="the new topics")


@contextlib.asynccontextmanager
async def installation(kafka: str, postgres: str) -> AsyncIterator[Installation]:
    """New topics on `kafka`, a new database on the server of `postgres`."""
    await asyncio.to_thread(new_topics, kafka)
    async with tables(kafka, postgres) as made:
        yield made


@contextlib.asynccontextmanager
async def tables(kafka: str, postgres: str) -> AsyncIterator[Installation]:
    """A new database, and the topics as they are: for tests that write no record."""
    name = f"orders_{next(_databases)}_{secrets.token_hex(3)}"
    place = Installation(kafka, f"{postgres.rpartition('/')[0]}/{name}", DecisionsLog(kafka))
    server = Installation(kafka, postgres, place.log)
    await server.rows(f"CREATE DATABASE {name}")
    await migrate(place.postgres)
    yield place
    await server.rows(f"DROP DATABASE {name} WITH (FORCE)")


async def insert_orders(place: Installation, count: int, status: str = "reserved", *, product_id: str = "shoe") -> None:
    """Rows as the log would have made them, `p1` to `p<count>`, their holds over since a minute."""
    await place.rows(
        """INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reservation_no, unit_price_minor,
             currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until, version)
           SELECT 'p' || n, 'buyer-of-p' || n, $2::text, 2, $3::text, n, 4200, 'EUR', 'ok', 'f', 0, n, 0,
                  now() - interval '1 minute', CASE $3 WHEN 'reserved' THEN 2 ELSE 3 END
           FROM generate_series(1, $1) AS n""",
        count,
        product_id,
        status,
    )


async def applied_until(place: Installation, topic: str, seconds: float, partitions: int = 12) -> None:
    """Say that a topic is applied until so many seconds from now."""
    await place.rows(
        """INSERT INTO applied SELECT $1, n, now() + $2 * interval '1 second' FROM generate_series(0, $3 - 1) AS n
           ON CONFLICT (topic, partition) DO UPDATE SET until = excluded.until""",
        topic,
        seconds,
        partitions,
    )


async def apply_decisions(place: Installation, product_id: str, source_offset: int) -> None:
    """Say that a product's partition is applied through the request at `source_offset`."""
    progress = """INSERT INTO progress VALUES ($1, $2 + 1, $2, 'f', $2, 'id')
                  ON CONFLICT (partition) DO UPDATE SET source_offset = $2"""
    await place.rows(progress, partition_of(product_id), source_offset)


@contextlib.asynccontextmanager
async def units_of(place: Installation, connections: int = 8) -> AsyncIterator[UnitsOfWork]:
    """Transactions on its database, beside any writer."""
    async with asyncpg.create_pool(place.postgres, min_size=1, max_size=connections) as pool:
        yield UnitsOfWork(pool, lambda *_: None)


async def waiting_messages(place: Installation) -> list[Outgoing]:
    """What transactions left in the outbox."""
    rows = await place.rows("SELECT messages FROM outbox ORDER BY id")
    return [message for row in rows for message in decode_outbox(row["messages"])]


async def empty(place: Installation) -> bool:
    """Whether all messages are sent."""
    return await place.value("SELECT count(*) FROM outbox") == 0


async def letters(place: Installation, count: int) -> bool:
    """Whether so many dead letters are there."""
    return len(place.values(DEAD_LETTERS.name)) == count


async def applied(place: Installation, partition: int, offset: int) -> bool:
    """Whether a partition is applied up to `offset`."""
    return await place.value("SELECT next_offset FROM progress WHERE partition = $1", partition) == offset


async def applying_again_changes_nothing(place: Installation, partition: int, end: int) -> None:
    """Let another group apply `decisions` from the beginning: the rows are the same, and nothing is told again."""
    before, sent = await place.rows("SELECT * FROM purchases ORDER BY 1"), (place.requests(), place.events())
    await place.rows("UPDATE progress SET next_offset = 0, source_offset = -1, load = '', anchor = -1")
    async with place.writer(group="another") as task:
        await until(lambda: applied(place, partition, end), "applied again", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert await place.rows("SELECT * FROM purchases ORDER BY 1") == before
    assert (place.requests(), place.events()) == sent
