"""`stampede.orders`, the public topic: CloudEvents, and enough to rebuild the book of ended orders from it alone."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import asyncpg
from confluent_kafka import Message

from eventlog.kafka import producer
from order_writer.outbox.messages import Outgoing, encode_outbox
from order_writer.outbox.relay import Relay
from order_writer.postgres.pool import Pool
from stampede_schemas.codec import decode_order_event
from stampede_schemas.decisions import AnyDecision
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import ORDERS, partition_of
from tests.support.builders.orders import TRACEPARENT, Installation, empty, listed, rejected, released, reserved, until

ENDED = """
SELECT purchase_id, version, buyer_id, product_id, quantity, status, partition, source_offset, source_index,
       reservation_no, unit_price_minor, currency, payment_method, reason, refund
FROM purchases WHERE status IN ('confirmed', 'released') ORDER BY purchase_id"""
WORD = re.compile(rb"[\x21-\x7e]+")


class Line(NamedTuple):
    """An order in the book, as the columns of `ENDED`."""

    purchase_id: str
    version: int
    buyer_id: str
    product_id: str
    quantity: int
    status: str
    partition: int
    source_offset: int
    source_index: int
    reservation_no: int
    unit_price_minor: int
    currency: str
    payment_method: str
    reason: str | None
    refund: str


def book(events: list[AnyOrderEvent]) -> list[Line]:
    """What a stranger makes of the topic: of each order the highest version seen, whatever comes twice or late."""
    latest: dict[str, AnyOrderEvent] = {}
    for event in events:
        if event.purchase_id not in latest or event.version > latest[event.purchase_id].version:
            latest[event.purchase_id] = event
    return [
        Line(
            name, it.version, it.buyer_id, it.product_id, it.quantity, it.status, it.reservation.partition,
            it.reservation.offset, it.reservation.index, it.reservation_no, it.unit_price_minor, it.currency,
            it.payment_method, it.reason, it.refund,
        )
        for name, it in sorted(latest.items())
    ]  # fmt: skip


async def test_a_stranger_rebuilds_the_book_of_ended_orders(place: Installation) -> None:
    """After a sale with declines, expiry, cancellations before and after payment, second reservations and refusals by
    the log, with every event told twice: the book from the topic is the table."""
    place.log.append(1, [listed("shoe")], [rejected("no")])
    place.log.append(4, [listed("sock")])
    sale: list[AnyDecision] = [reserved(f"ok-{n}", n + 1, traceparent=TRACEPARENT) for n in range(30)]
    sale += [reserved(f"declined-{n}", 100 + n, method="declined") for n in range(10)]
    sale += [reserved(f"held-{n}", 200 + n, method="unknown") for n in range(5)]
    sale += [reserved(f"expiring-{n}", 300 + n, method="unknown", hold_ms=100) for n in range(3)]
    place.log.append(1, sale[:20], sale[20:])
    async with place.writer() as task:
        confirmed = "SELECT count(*) = 30 FROM purchases WHERE status = 'confirmed'"
        await until(lambda: place.value(confirmed), "sold", task=task)
        place.log.append(4, [reserved(f"ok-{n}", n + 1, product_id="sock") for n in range(5)])
        for name in ("ok-1", "ok-2", "held-1", "held-2"):
            await asyncio.to_thread(place.command, cancel(name))
        ended = "SELECT count(*) = 45 FROM purchases WHERE status IN ('confirmed', 'released') AND refund <> 'due'"
        await until(lambda: place.value(ended), "all but the held ones have ended", task=task)
        await until(lambda: empty(place), "sent", task=task)
        answers = [
            released(asked.purchase_id, asked.reservation, reason=asked.reason)
            for _, asked in place.requests()
            if isinstance(asked, ReleaseRequested)
        ]
        place.log.append(1, answers)
        back = "SELECT count(*) FROM purchases WHERE stock_returned_at IS NOT NULL"
        await until(lambda: returned(place, back, len(answers)), "the units are back", task=task)
    again(place, place.records(ORDERS.name))
    events = place.events()
    rows = [Line(*row) for row in await place.rows(ENDED)]
    assert len(rows) == 45
    assert book(events) == rows
    assert book(events[::-1]) == rows
    assert {(line.reason, line.refund) for line in rows} == {
        (None, "none"),
        ("payment_declined", "none"),
        ("hold_expired", "none"),
        ("cancelled", "none"),
        ("cancelled", "done"),
    }


class Crossed(Relay):
    """A relay during whose sending something else is committed."""

    def __init__(self, place: Installation, pool: Pool, meanwhile: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(place.kafka, "relay", pool, asyncio.Event(), lambda: None)
        self._meanwhile, self._loop = meanwhile, asyncio.get_running_loop()

    def _send(self, rows: list[asyncpg.Record]) -> dict[int, list[Outgoing]]:
        """Between reading the rows and deleting them."""
        asyncio.run_coroutine_threadsafe(self._meanwhile(), self._loop).result()
        return super()._send(rows)


async def test_what_is_committed_while_its_neighbours_are_sent_is_not_deleted_with_them(place: Installation) -> None:
    """Its id lies between theirs: a range, or a cursor, would lose it."""

    def message(name: bytes) -> bytes:
        return encode_outbox([Outgoing(ORDERS.name, 0, None, name, [])])

    pool = await asyncpg.create_pool(place.postgres, min_size=1, max_size=4)
    insert = "INSERT INTO outbox (messages) VALUES ($1)"
    async with pool.acquire() as slow:
        begun = slow.transaction()
        await pool.execute(insert, message(b"first"))
        await begun.start()
        await slow.execute(insert, message(b"slow"))
        await pool.execute(insert, message(b"third"))
        relay = Crossed(place, pool, begun.commit)
        assert await relay.round()
    assert place.values(ORDERS.name) == [b"first", b"third"]
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(Relay(place.kafka, "relay", pool, asyncio.Event(), lambda: None).run(stopping))
        await until(lambda: empty(place), "the slow one is sent")
        stopping.set()
    assert place.values(ORDERS.name) == [b"first", b"third", b"slow"]
    await pool.close()


async def test_each_event_is_a_cloud_event(place: Installation) -> None:
    """Binary mode: the attributes in `ce_` headers, the order alone in the value; keyed and placed by purchase."""
    place.log.append(1, [listed()], [reserved("p1", 1), reserved("p2", 2, method="declined")])
    async with place.writer() as task:
        ended = "SELECT count(*) = 2 FROM purchases WHERE status IN ('confirmed', 'released')"
        await until(lambda: place.value(ended), "both ended", task=task)
        await until(lambda: empty(place), "sent", task=task)
    records = place.records(ORDERS.name)
    assert len(records) == 2
    for record in records:
        headers: dict[str, Any] = dict(record.headers() or [])
        event = decode_order_event(record.value() or b"")
        assert record.key() == event.purchase_id.encode()
        assert record.partition() == partition_of(event.purchase_id)
        assert headers.pop("ce_time").endswith(b"+00:00")
        assert all(WORD.fullmatch(value) for value in headers.values())
        assert headers == {
            "ce_specversion": b"1.0",
            "ce_id": f"{event.purchase_id}/{event.version}".encode(),
            "ce_source": b"/stampede/order-writer",
            "ce_type": f"stampede.{type(event).__name__}.v1".encode(),
            "ce_subject": event.purchase_id.encode(),
            "content-type": b"application/json",
        }


def cancel(purchase_id: str) -> CancelRequested:
    """By its buyer."""
    actor = f"buyer-of-{purchase_id}"
    return CancelRequested(request_id=RequestId(f"c-{purchase_id}"), purchase_id=PurchaseId(purchase_id), actor=actor)


def again(place: Installation, records: list[Message]) -> None:
    """Everything a second time, as a relay does that died before it could delete."""
    client = producer(place.kafka)
    for record in records:
        client.produce(ORDERS.name, record.value(), record.key(), record.partition() or 0)
    assert client.flush(30) == 0


async def returned(place: Installation, query: str, count: int) -> bool:
    """Whether so many reservations are back."""
    return await place.value(query) == count
