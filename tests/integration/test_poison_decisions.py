"""Fenced records on `stampede.decisions`, forged or late: they change nothing in any table, and everybody goes on."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from eventlog.kafka import producer
from inventory.loading import Record
from stampede_schemas.codec import encode_requests
from stampede_schemas.decisions import Reserved
from stampede_schemas.topics import DECISIONS, partition_of
from tests.support.processes.inventory import Log, digest_of, listing, purchase
from tests.support.processes.stack import LocalStack, stack

TEA = "tea-with-forgeries"
PARTITION = partition_of(TEA)
SETTLE_S_MAX = 20.0
LOOK_EVERY_S = 0.1
_DUMPS = ("SELECT * FROM purchases ORDER BY purchase_id", "SELECT * FROM products ORDER BY product_id")


@pytest.fixture(scope="module")
def shop() -> Iterator[LocalStack]:
    """A stack of its own: its log is forged."""
    with stack() as running:
        yield running


async def rows(shop: LocalStack) -> list[list[asyncpg.Record]]:
    """Everything that Postgres says of purchases and products."""
    connection = await asyncpg.connect(shop.postgres)
    try:
        return [list(await connection.fetch(query)) for query in _DUMPS]
    finally:
        await connection.close()


async def read_to(shop: LocalStack) -> int:
    """Up to which offset of `decisions` the order-writer has read the partition."""
    connection = await asyncpg.connect(shop.postgres)
    try:
        found = await connection.fetchval("SELECT next_offset FROM progress WHERE partition = $1", PARTITION)
        return int(found or 0)
    finally:
        await connection.close()


async def at_rest(shop: LocalStack, log: Log) -> list[list[asyncpg.Record]]:
    """Wait until all is answered, applied and nothing is held; the rows then."""
    log.await_answers(PARTITION, SETTLE_S_MAX)
    for _ in range(round(SETTLE_S_MAX / LOOK_EVERY_S)):
        applied = await read_to(shop) == log.ends(DECISIONS.name)[PARTITION]
        found = await rows(shop)
        if applied and not any(row["status"] == "reserved" for row in found[0]):
            return found
        await asyncio.sleep(LOOK_EVERY_S)
    raise AssertionError("the order-writer did not come to rest")


def forgeries(log: Log, last: Record) -> dict[str, bytes | None]:
    """Records that do not count, made from the last one that does."""
    content: dict[str, Any] = json.loads(last.value or b"")
    following = content["source_offset"] + 1
    sold = [decision for decision in content["decisions"] if decision["type"] == "Reserved"]
    stolen = [decision | {"purchase_id": "p-stolen", "buyer_id": "b-thief"} for decision in sold]
    assert stolen

    def forged(**fields: object) -> bytes:
        return json.dumps(content | fields).encode()

    end = log.ends(DECISIONS.name)[PARTITION]
    return {
        "repeated": last.value,
        "repeated, with another answer": forged(decisions=stolen),
        "late": forged(source_offset=0, decisions=stolen),
        "of a foreign load": forged(source_offset=following, load="f" * 32, start=0, decisions=stolen),
        "of a load that expects to stand elsewhere": forged(
            source_offset=following, load="e" * 32, start=end + 1_000, decisions=stolen
        ),
        "of the right load, too far ahead": forged(source_offset=following + 1, decisions=stolen),
        "of the right place, too far ahead": forged(source_offset=following + 7, load="d" * 32, start=end + 6),
        "garbage": b"\x00\xff garbage",
        "no bytes": b"",
        "a tombstone": None,
        "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
        "an envelope without decisions": b'{"source_offset":%d,"load":"","start":0}' % following,
        "half a record": (last.value or b"")[:-9],
        "an offset beyond 64 bits": forged(source_offset=2**64, decisions=stolen),
    }


async def test_void_decisions_change_nothing_in_the_inventory_nor_in_postgres(shop: LocalStack) -> None:
    """Late, repeated, foreign or garbage: tables and rows stay, also after a restart, and the next purchase is sold."""
    log = Log(shop.kafka)
    log.ask([listing(TEA, 20)])
    log.ask([purchase(TEA) for _ in range(3)])
    log.flush()
    before = await at_rest(shop, log)
    last = log.records(DECISIONS.name, PARTITION)[-1]
    table, answers, void = log.answered(PARTITION)
    digest = digest_of(table)
    assert state(shop) == digest

    made = forgeries(log, last)
    writer = producer(shop.kafka)
    for value in made.values():
        writer.produce(DECISIONS.name, value, partition=PARTITION)
    assert writer.flush(10) == 0

    assert await at_rest(shop, log) == before
    assert log.answered(PARTITION)[1:] == (answers, void + len(made))
    assert state(shop) == digest
    shop.restart("inventory-0")  # whoever loads the partition now reads the forgeries from the log
    assert state(shop) == digest

    asked = log.ends("stampede.requests")[PARTITION]
    log.append(PARTITION, encode_requests([purchase(TEA, "p-honest")]))
    log.flush()
    after = await at_rest(shop, log)
    answer = log.answered(PARTITION)[1][asked]
    assert [type(decision) for decision in answer] == [Reserved]
    sold = {row["purchase_id"]: row["status"] for row in after[0]}
    assert sold.pop("p-honest") == "confirmed"
    assert sold == {row["purchase_id"]: row["status"] for row in before[0]}
    assert all(row["restarts"] == 0 for row in shop.status().values() if not row["name"].startswith("inventory"))


def state(shop: LocalStack) -> str:
    """The digest of the live table."""
    ops = shop.endpoints.processes["inventory"][0]["ops"]
    answer = httpx.get(f"{ops}/state", params={"partition": PARTITION})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["sha256"])
