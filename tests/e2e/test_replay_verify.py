"""`replay` against a real sale: it holds, and then one thing after the other is tampered with and named."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from confluent_kafka import KafkaError, Message

from devstack.load_generator import LoadGenerator, Sale
from eventlog.kafka import consumer, producer, read_one, watermarks
from replay import journal
from stampede_schemas.topics import DECISIONS, PARTITIONS, REQUESTS, Topic, partition_of
from tests.chaos.verdict import at_rest
from tests.support.processes.servers import fetch
from tests.support.processes.stack import LocalStack, eventually, stack

VERIFY_S_MAX = 120.0


@pytest.fixture(scope="module")
def shop() -> Iterator[LocalStack]:
    """A stack of its own: the log is forged in the end."""
    with stack() as running:
        yield running


@dataclass(frozen=True)
class Verdict:
    """What `replay` said: its exit code, and by rule what it found."""

    code: int
    rules: dict[str, dict[str, Any]]
    error: str

    @property
    def violated(self) -> dict[str, str]:
        """The rules that do not hold, each with the first place that shows it."""
        return {name: rule["first"][0]["at"] for name, rule in self.rules.items() if rule["verdict"] == "violated"}


def replay(running: LocalStack, *arguments: str) -> Verdict:
    """Run the program."""
    command = [sys.executable, "-m", "replay", *arguments]
    if "--endpoints" not in arguments and (arguments[0] != "check" or arguments[1].startswith("-")):
        command += ["--endpoints", str(running.layout.endpoints)]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=VERIFY_S_MAX, check=False, cwd=running.layout.root
    )
    rules = {rule["rule"]: rule for rule in json.loads(done.stdout)["rules"]} if done.stdout else {}
    return Verdict(done.returncode, rules, done.stderr)


async def execute(running: LocalStack, statement: str, *values: object) -> list[asyncpg.Record]:
    """One statement in the order-writer's database."""
    return await fetch(running.postgres, statement, *values)


def append(running: LocalStack, topic: Topic, partition: int, value: bytes) -> int:
    """Write a record beside the services; where it stands."""
    landed: list[tuple[KafkaError | None, Message]] = []
    writer = producer(running.kafka)
    writer.produce(topic.name, value, partition=partition, on_delivery=lambda *report: landed.append(report))
    assert writer.flush(10) == 0
    [(error, message)] = landed
    assert error is None, error.str()
    offset = message.offset()
    assert offset is not None
    return offset


def end_of(running: LocalStack, topic: Topic, partition: int) -> int:
    """Where the next record of a partition will stand."""
    reader = consumer(running.kafka)
    try:
        return watermarks(reader, topic.name, partition)[1]
    finally:
        reader.close()


def forge(running: LocalStack, partition: int, **fields: object) -> int:
    """Append a copy of the last decisions record with some fields changed; where it stands."""
    end = end_of(running, DECISIONS, partition)
    reader = consumer(running.kafka)
    try:
        value = read_one(reader, DECISIONS.name, partition, end - 1).value()
    finally:
        reader.close()
    assert isinstance(value, bytes)
    forged = json.loads(value) | {"load": "f" * 32, "start": end} | fields
    assert append(running, DECISIONS, partition, json.dumps(forged).encode()) == end, "the log was not at rest"
    return end


def poison(running: LocalStack, partition: int) -> int:
    """Append bytes that are no request, beside the gateway; where they stand."""
    return append(running, REQUESTS, partition, b"\xff\x00 no request")


async def sell_until(verified: asyncio.Event, shop: LocalStack, sale: Sale) -> journal.Journal:
    """This sale, and others after it until the event is set: there is load for as long as somebody verifies."""
    told = await LoadGenerator(shop.endpoints, sale).run()
    while not verified.is_set():
        await LoadGenerator(shop.endpoints, Sale(units=10, buyers=40, declined_share=0.2)).run()
    return told


async def test_a_real_sale_holds_and_each_tampering_is_named(shop: LocalStack, tmp_path: Path) -> None:
    """A sale with declined payments, poison and a kill -9 is verified amid and after; then it is tampered with."""
    sale = Sale(units=60, buyers=400, declined_share=0.2, duplicates_share=0.1, seed=7)
    partition = partition_of(sale.product_id)
    verified = asyncio.Event()
    selling = asyncio.create_task(sell_until(verified, shop, sale))
    await asyncio.to_thread(eventually, lambda: end_of(shop, DECISIONS, partition) > 1, what="a decided purchase")
    await asyncio.to_thread(poison, shop, partition)
    await asyncio.to_thread(shop.kill, "inventory-0")
    # Until its successor has its tables there is nobody to ask for them, and `verify` says so with exit code 2.
    async with asyncio.timeout(VERIFY_S_MAX):
        while (amid := await asyncio.to_thread(replay, shop, "verify")).code == 2:
            pass
    verified.set()
    assert (amid.code, amid.violated) == (0, {}), amid.error
    told = await selling
    assert told.sold == sale.units
    # From here on nobody writes but this test: what it forges stands where it was meant to stand.
    assert (await at_rest(shop))[0] == []
    written = tmp_path / "journal.jsonl"
    journal.write(written, told)

    sound = await asyncio.to_thread(replay, shop, "verify", "--journal", str(written))
    assert (sound.code, sound.violated) == (0, {}), sound.error
    assert {name for name, rule in sound.rules.items() if rule["verdict"] != "holds"} == {
        "S11",  # the journal tells of no limits
        "S19",  # and nobody of canaries
    }
    assert sound.rules["S12"]["looked_at"] == PARTITIONS
    assert sound.rules["S5"]["looked_at"] >= sale.units
    assert sound.rules["S8"]["looked_at"] == len(told.attempts)

    await exported_sales_are_judged_alike(shop, tmp_path)
    await tampered_rows_are_named(shop, sale.product_id, tmp_path)
    await forged_records_are_named(shop, partition, tmp_path)


async def exported_sales_are_judged_alike(shop: LocalStack, folder: Path) -> None:
    """The file holds the same log; one product's partition is a file of its own; dead letters can be read."""
    file = folder / "sale.jsonl.gz"
    assert (await asyncio.to_thread(replay_plain, shop, "export", "--out", str(file)))[0] == 0
    judged = await asyncio.to_thread(replay, shop, "check", str(file))
    assert (judged.code, judged.violated) == (0, {})
    live = await asyncio.to_thread(replay, shop, "check", "--rule", "S3", "--rule", "S4")
    assert live.rules["S4"]["looked_at"] == judged.rules["S4"]["looked_at"] > 0
    code, said = await asyncio.to_thread(replay_plain, shop, "dead-letters", "list")
    assert code == 0
    assert "not_json" in said


def replay_plain(running: LocalStack, *arguments: str) -> tuple[int, str]:
    """A command that has no --json."""
    done = subprocess.run(
        [sys.executable, "-m", "replay", *arguments, "--endpoints", str(running.layout.endpoints)],
        capture_output=True,
        text=True,
        timeout=VERIFY_S_MAX,
        check=False,
    )
    return done.returncode, done.stdout


async def tampered_rows_are_named(shop: LocalStack, product_id: str, folder: Path) -> None:
    """Each change is named by the rules whose business it is, and undone afterwards."""
    sold = await execute(
        shop, "SELECT * FROM purchases WHERE product_id = $1 AND status = 'confirmed' LIMIT 1", product_id
    )
    purchase_id, price = sold[0]["purchase_id"], sold[0]["unit_price_minor"]
    at = f"purchases/{purchase_id}"

    books, captured = older_books(shop, folder / "books.jsonl", purchase_id)

    await execute(shop, "UPDATE purchases SET unit_price_minor = 1 WHERE purchase_id = $1", purchase_id)
    found = (await asyncio.to_thread(replay, shop, "verify")).violated
    assert found == {"S7": at, "S21": captured}  # what was captured is not its price any more
    await execute(shop, "UPDATE purchases SET unit_price_minor = $2 WHERE purchase_id = $1", purchase_id, price)

    await execute(shop, "UPDATE products SET stock = stock - 5 WHERE product_id = $1", product_id)
    found = (await asyncio.to_thread(replay, shop, "verify")).violated
    assert found == dict.fromkeys(("S2", "S14"), f"products/{product_id}")
    await execute(shop, "UPDATE products SET stock = stock + 5 WHERE product_id = $1", product_id)

    await execute(shop, "CREATE TABLE kept AS SELECT * FROM purchases WHERE purchase_id = $1", purchase_id)
    await execute(shop, "CREATE TABLE paid AS SELECT * FROM payments WHERE purchase_id = $1", purchase_id)
    await execute(shop, "DELETE FROM payments WHERE purchase_id = $1", purchase_id)
    await execute(shop, "DELETE FROM purchases WHERE purchase_id = $1", purchase_id)
    place = "requests/{partition}/{source_offset}/{source_index}".format(**sold[0])
    found = (await asyncio.to_thread(replay, shop, "verify", "--payments", str(books))).violated
    assert found == {"S5": place, "S21": captured}
    await execute(shop, "INSERT INTO purchases SELECT * FROM kept")
    await execute(shop, "INSERT INTO payments SELECT * FROM paid")
    assert (await asyncio.to_thread(replay, shop, "verify")).violated == {}


def older_books(shop: LocalStack, copy: Path, purchase_id: str) -> tuple[Path, str]:
    """The provider's books, all facts a minute older; and the line where it captured the money of this purchase.

    Money for which there is no order is named after 30 s only: its refund may be on its way until then.
    """
    facts = [json.loads(line) for line in shop.layout.payments.read_text().splitlines()]
    copy.write_text("".join(json.dumps(fact | {"at_ms": fact["at_ms"] - 60_000}) + "\n" for fact in facts))
    [line] = [number for number, fact in enumerate(facts, 1) if fact["purchase_id"] == purchase_id]
    return copy, f"payments/{line}"


async def forged_records_are_named(shop: LocalStack, partition: int, folder: Path) -> None:
    """A forged record that is void changes nothing; one that satisfies rule 2 is seen by everybody, and named.

    Its content is something on which nobody acts. A forged reservation would make the order-writer ask for its
    release, and that request may come before or after the check.
    """
    before = await asyncio.to_thread(replay, shop, "check", "--rule", "S14")
    await asyncio.to_thread(forge, shop, partition, start=0)
    void = await asyncio.to_thread(replay, shop, "verify")
    assert (void.code, void.violated) == (0, {})
    assert void.rules["S14"]["looked_at"] == before.rules["S14"]["looked_at"] + 1

    following = await asyncio.to_thread(end_of, shop, REQUESTS, partition)
    nothing = [{"type": "Unreadable", "reason": "not_json"}]
    forged = await asyncio.to_thread(forge, shop, partition, source_offset=following, decisions=nothing)
    at = f"decisions/{partition}/{forged}"
    rules = ("--rule", "S3", "--rule", "S14", "--rule", "S16")
    assert (await asyncio.to_thread(replay, shop, "check", *rules)).violated == {"S3": at}

    # A request that comes to stand where the forged record said has an answer by count. Its bytes are others.
    assert await asyncio.to_thread(poison, shop, partition) == following
    assert (await asyncio.to_thread(replay, shop, "check", *rules)).violated == {"S16": at}

    # Workers end at a log that cannot be right: it is judged without them, and they are said to be missing.
    without_workers = folder / "endpoints.json"
    found = json.loads(shop.layout.endpoints.read_text())
    without_workers.write_text(json.dumps(found | {"processes": found["processes"] | {"inventory": []}}))
    alone = await asyncio.to_thread(replay, shop, "verify", "--endpoints", str(without_workers))
    assert (alone.code, alone.violated["S16"]) == (1, at)
    assert "no inventory worker runs" in alone.error
    assert alone.rules["S12"]["verdict"] == "not looked at"
