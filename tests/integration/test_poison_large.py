"""Poison that is small for the broker and large for its readers: it costs a dead letter, and nothing stops."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message

from eventlog.__main__ import provision
from eventlog.kafka import consumer, producer, read_range, watermarks
from replay.__main__ import main
from stampede_schemas.codec import encode
from stampede_schemas.dead_letters import KEPT_BYTES
from stampede_schemas.decisions import Reserved, Unreadable
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from stampede_schemas.topics import (
    DEAD_LETTERS,
    MESSAGE_BYTES_MAX,
    ORDER_COMMANDS,
    PARTITIONS,
    REQUESTS,
    Topic,
    partition_of,
)
from tests.support.builders.orders import Installation, empty, listed, reserved, until
from tests.support.processes.inventory import RECORD_BYTES_MAX, InventoryProcess, Log, listing, purchase, worker
from tests.support.processes.stack import components

NEXT_DECIDED_S_MAX = 1.0
LARGE = b"poison" + bytes(3 * MESSAGE_BYTES_MAX)  # some 12 KB in the log
BOMB = b"bomb" + bytes(220 * MESSAGE_BYTES_MAX)  # almost what a megabyte of lz4 can hold
# Kept whole, and a hundred of them come in one answer of the broker: their letters fill the queue of any producer.
FILLERS = [b"%03d" % n + bytes(1_000_000) for n in range(100)]


@dataclass(frozen=True)
class Scene:
    """A broker and a worker, with a product on sale in each of two partitions."""

    kafka: str
    log: Log
    worker: InventoryProcess

    def letters(self) -> dict[str, Message]:
        """Dead letters by their key."""
        return {str(it.key() or b"", "utf-8"): it for it in records(self.kafka, DEAD_LETTERS)}

    def decided_within_a_second(self, product_id: str) -> None:
        """The next good purchase is reserved, as if there was no poison."""
        began = time.monotonic()
        at = self.log.ends(REQUESTS.name)[partition_of(product_id)]
        self.log.ask([purchase(product_id)])
        self.log.flush()
        answers: dict[int, Any] = {}
        while at not in answers and time.monotonic() < began + 30:
            answers = self.log.answered(partition_of(product_id))[1]
        assert isinstance(answers[at][0], Reserved)
        assert time.monotonic() - began < NEXT_DECIDED_S_MAX, f"{time.monotonic() - began:.2f} s"


TEA, MUG = "tea", "mug"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Started once."""
    assert partition_of(TEA) != partition_of(MUG)
    with components() as running:
        provision(running.kafka, 1)
        with worker(running.kafka, tmp_path_factory.mktemp("worker")) as process:
            log = Log(running.kafka)
            for product_id in (TEA, MUG):
                log.ask([listing(product_id, 1_000)])
                log.flush()
                log.await_answers(partition_of(product_id))
            yield Scene(running.kafka, log, process)


def records(kafka: str, topic: Topic) -> list[Message]:
    """Everything in a topic."""
    client = consumer(kafka)
    try:
        ends = {n: watermarks(client, topic.name, n) for n in range(PARTITIONS)}
        return [it for n, (first, end) in ends.items() for it in read_range(client, topic.name, n, first, end)]
    finally:
        client.close()


def append(kafka: str, topic: Topic, partition: int, value: bytes, codec: str) -> int | None:
    """The offset of the record, packed like that; None if the broker refuses it."""
    said: list[int | None] = []

    def report(error: KafkaError | None, message: Message) -> None:
        said.append(None if error else message.offset())

    client = producer(
        kafka,
        **{
            "compression.type": codec,
            "message.max.bytes": RECORD_BYTES_MAX,
            "queue.buffering.max.kbytes": 1_000_000,
            "message.timeout.ms": 60_000,
        },
    )
    client.produce(topic.name, value, partition=partition, on_delivery=report)
    assert client.flush(60) == 0
    return said[0]


def is_cut(letter: Message, value: bytes) -> None:
    """It holds size, hash and beginning of this value."""
    headers = dict(letter.headers() or [])
    assert letter.value() == value[:KEPT_BYTES]
    assert headers["size"] == b"%d" % len(value)
    assert headers["sha256"] == sha256(value).hexdigest().encode()


@pytest.mark.parametrize("codec", ["lz4", "gzip", "zstd", "snappy"])
def test_three_megabytes_in_some_kilobytes_are_one_letter(scene: Scene, codec: str) -> None:
    """It holds size, SHA-256, position and the first 64 KiB; the worker goes on, on this partition and on another."""
    at = append(scene.kafka, REQUESTS, partition_of(TEA), LARGE, codec)
    scene.decided_within_a_second(TEA)
    scene.decided_within_a_second(MUG)
    answers = scene.log.await_answers(partition_of(TEA))[1]
    assert answers[at or 0] == [Unreadable(reason="too_large")]
    is_cut(scene.letters()[f"{REQUESTS.name}/{partition_of(TEA)}/{at}/0"], LARGE)


def test_what_inflates_250_fold_is_one_letter(scene: Scene) -> None:
    """The most that the broker takes. Reading it takes its time; then all is as before."""
    at = append(scene.kafka, REQUESTS, partition_of(TEA), BOMB, "lz4")
    scene.log.ask([purchase(TEA)])
    scene.log.flush()
    answers = scene.log.await_answers(partition_of(TEA))[1]
    assert answers[at or 0] == [Unreadable(reason="too_large")]
    is_cut(scene.letters()[f"{REQUESTS.name}/{partition_of(TEA)}/{at}/0"], BOMB)
    scene.decided_within_a_second(TEA)
    scene.decided_within_a_second(MUG)


def test_what_would_inflate_further_is_refused_by_the_broker(scene: Scene) -> None:
    """300 MB are some 10 KB of zstd, which readers on librdkafka never get past: as lz4 they are over the limit."""
    assert append(scene.kafka, REQUESTS, partition_of(TEA), bytes(300 * MESSAGE_BYTES_MAX), "zstd") is None
    scene.decided_within_a_second(TEA)


def test_a_hundred_large_records_at_once_are_a_hundred_letters(scene: Scene) -> None:
    """More than a producer's queue holds: the worker asks for few at a time."""
    first = scene.log.ends(REQUESTS.name)[partition_of(TEA)]
    scene.worker.process.send_signal(signal.SIGSTOP)
    for filler in FILLERS:
        scene.log.append(partition_of(TEA), filler)
    scene.log.flush()
    scene.worker.process.send_signal(signal.SIGCONT)
    scene.log.await_answers(partition_of(TEA))
    scene.decided_within_a_second(TEA)
    letters = scene.letters()
    for n, filler in enumerate(FILLERS):
        assert letters[f"{REQUESTS.name}/{partition_of(TEA)}/{first + n}/0"].value() == filler


def test_a_cut_letter_is_redriven_whole(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes come from where they stood."""
    at = append(scene.kafka, REQUESTS, partition_of(TEA), LARGE, "lz4")
    scene.decided_within_a_second(TEA)
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps({"kafka": scene.kafka, "postgres": "", "processes": {"inventory": []}}))
    source = f"requests/{partition_of(TEA)}/{at}/0"
    end = scene.log.ends(REQUESTS.name)[partition_of(TEA)]
    assert main(["dead-letters", "redrive", source, "--endpoints", str(endpoints)]) == 0
    assert "stands again" in capsys.readouterr().out
    assert scene.log.records(REQUESTS.name, partition_of(TEA))[end].value == LARGE


def test_a_worker_that_sends_its_letters_whole_is_found_by_this(tmp_path: Path) -> None:
    """The planted bug: it ends at the first of them, and would after each restart."""
    order = tmp_path / "planted"
    order.write_text("inventory: a dead letter of any size is sent whole")
    build = {"module": "tests.planted.builds.inventory", "STAMPEDE_PLANTED": str(order)}
    with components() as running:
        provision(running.kafka, 1)
        append(running.kafka, REQUESTS, partition_of(TEA), LARGE, "lz4")
        for _ in range(2):
            with worker(running.kafka, tmp_path, **build) as process:
                assert process.process.wait(60) == 1
    assert "MSG_SIZE_TOO_LARGE" in (tmp_path / "inventory-0.log").read_text()


async def test_large_commands_are_letters_and_the_next_good_one_is_heard(place: Installation) -> None:
    """Garbage of megabytes, far too much around a good command, a bomb: size, hash and beginning of each."""
    good = CancelRequested(request_id=RequestId("g"), purchase_id=PurchaseId("p1"), actor="buyer-of-p1")
    padded = encode(good).ljust(2 * MESSAGE_BYTES_MAX)
    place.log.append(2, [listed()], [reserved("p1", 1, method="unknown")])
    async with place.writer() as task:
        held = "SELECT count(*) = 1 FROM purchases WHERE status = 'reserved'"
        await until(lambda: place.value(held), "held", task=task)
        for value in (*[LARGE] * 40, padded, BOMB):
            await asyncio.to_thread(append, place.kafka, ORDER_COMMANDS, 6, value, "lz4")
        await asyncio.to_thread(place.append_commands, (6, encode(good)))
        cancelled = "SELECT true FROM purchases WHERE purchase_id = 'p1' AND reason = 'cancelled'"
        await until(lambda: place.value(cancelled), "the good one is heard", 60.0, task)
        await until(lambda: empty(place), "sent", 60.0, task=task)
    letters = sorted(await asyncio.to_thread(place.records, DEAD_LETTERS.name), key=lambda it: it.key() or b"")
    by_offset = {int(str(it.key() or b"", "utf-8").rpartition("/")[2]): it for it in letters}
    assert len(letters) == len(by_offset) == 42
    for offset, value in enumerate((*[LARGE] * 40, padded, BOMB)):
        is_cut(by_offset[offset], value)
