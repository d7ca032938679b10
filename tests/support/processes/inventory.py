"""Drives real inventory workers over a real broker: appends requests, reads what counts, checks the answers."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec

from devstack.ports import anywhere, is_free
from eventlog.kafka import consumer, producer, read_range, watermarks
from eventlog.reader import CountingReader
from inventory.loading import Folded, Record, fold
from inventory.table import StockTable
from stampede_schemas.codec import encode_requests, source_crc, split_requests
from stampede_schemas.decisions import AnyDecision
from stampede_schemas.identifiers import BuyerId, Millis, ProductId, PurchaseId, RequestId
from stampede_schemas.requests import AnyRequest, ProductListRequested, PurchaseRequested
from stampede_schemas.topics import DECISIONS, PARTITIONS, REQUESTS, partition_of

WAIT_S = 60.0
RECORD_BYTES_MAX = 1_000_000_000


def purchase(product_id: str, purchase_id: str = "", quantity: int = 1, buyer_id: str = "") -> PurchaseRequested:
    """A purchase of one unit by a buyer of its own, unless told otherwise."""
    purchase_id = purchase_id or f"p-{uuid4().hex}"
    return PurchaseRequested(
        purchase_id=PurchaseId(purchase_id),
        buyer_id=BuyerId(buyer_id or f"b-{purchase_id}"),
        product_id=ProductId(product_id),
        quantity=quantity,
        payment_method="ok",
        fingerprint="f",
    )


def listing(product_id: str, stock: int) -> ProductListRequested:
    """A product that is open, with `stock` units and one unit a buyer."""
    return ProductListRequested(
        request_id=RequestId(f"list-{product_id}"),
        product_id=ProductId(product_id),
        name="Tea",
        unit_price_minor=1_000,
        currency="EUR",
        stock=stock,
        per_buyer_limit=1,
        hold_ms=60_000,
    )


class Log:
    """The test's own hands on `requests` and eyes on `decisions`."""

    def __init__(self, kafka: str) -> None:
        # The broker's limit is one of the compressed form; what is far larger may come as well.
        large = {"message.max.bytes": RECORD_BYTES_MAX, "queue.buffering.max.kbytes": 1_000_000}
        self._producer = producer(kafka, **large)
        self._reader = consumer(kafka, **{"fetch.wait.max.ms": 10})
        self.asked: dict[int, int] = {}

    def ask(self, requests: list[AnyRequest]) -> None:
        """Append one record of requests on one product."""
        self.append(partition_of(requests[0].product_id), encode_requests(requests))

    def append(self, partition: int, value: bytes | None) -> None:
        """Append any bytes."""
        self._producer.produce(REQUESTS.name, value, partition=partition)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything."""
        assert self._producer.flush(WAIT_S) == 0

    def ends(self, topic: str) -> dict[int, int]:
        """The end of each partition."""
        return {n: watermarks(self._reader, topic, n)[1] for n in range(PARTITIONS)}

    def records(self, topic: str, partition: int) -> list[Record]:
        """Everything in a partition."""
        _, end = watermarks(self._reader, topic, partition)
        return [
            Record(m.offset() or 0, m.value(), Millis(m.timestamp()[1]))
            for m in read_range(self._reader, topic, partition, 0, end)
        ]

    def answered(self, partition: int) -> tuple[StockTable, dict[int, list[AnyDecision]], int]:
        """The fold of a partition, its decisions by request offset, and how many records were void."""
        table, reader = StockTable(partition), CountingReader()
        answers: dict[int, list[AnyDecision]] = {}
        void = 0
        for record in self.records(DECISIONS.name, partition):
            found = fold(table, reader, record)
            if isinstance(found, Folded):
                answers[found.envelope.source_offset] = found.decisions
            else:
                void += 1
        return table, answers, void

    def await_answers(
        self, partition: int, wait_s: float = WAIT_S
    ) -> tuple[StockTable, dict[int, list[AnyDecision]], int]:
        """Wait until every request record of the partition is answered, then check each answer's source."""
        deadline = time.monotonic() + wait_s
        while True:
            requests = self.records(REQUESTS.name, partition)
            table, answers, void = self.answered(partition)
            if len(answers) == len(requests):
                break
            assert time.monotonic() < deadline, f"{len(answers)} of {len(requests)} answered after {wait_s:.0f} s"
            time.sleep(0.1)
        for record in requests:
            assert record.offset in answers
        return table, answers, void

    def crc(self, record: Record) -> int:
        """The checksum an answer to this record must carry."""
        return source_crc(record.value)

    def sizes(self, partition: int) -> list[int]:
        """How many requests each record of the partition holds."""
        return [len(split_requests(record.value)) for record in self.records(REQUESTS.name, partition)]


def kinds(answers: dict[int, list[AnyDecision]]) -> Counter[str]:
    """How often each kind of decision was made."""
    return Counter(type(decision).__name__ for decisions in answers.values() for decision in decisions)


class InventoryProcess:
    """One real worker process."""

    def __init__(
        self, kafka: str, folder: Path, instance: str = "inventory-0", module: str = "inventory", **env: str
    ) -> None:
        self.ops = next(port for port in anywhere() if is_free(port))
        self._log = (folder / f"{instance}.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=os.environ
            | {
                "STAMPEDE_KAFKA": kafka,
                "STAMPEDE_INSTANCE": instance,
                "STAMPEDE_OPS_PORT": str(self.ops),
                "STAMPEDE_DATA_DIR": str(folder),
            }
            | env,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )

    def get(self, path: str) -> dict[str, object]:
        """A JSON answer of its ops listener; raises OSError when it does not answer 200."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops}{path}", timeout=5) as answer:
            found: dict[str, object] = json.loads(answer.read())
        return found

    def await_ready(self, wait_s: float = WAIT_S) -> None:
        """Wait until it owns and has loaded its partitions."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self.get("/readyz")
            except OSError:
                assert self.process.poll() is None, "the worker ended"
                assert time.monotonic() < deadline, "the worker did not become ready"
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it for good."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


@contextmanager
def worker(
    kafka: str, folder: Path, instance: str = "inventory-0", module: str = "inventory", **env: str
) -> Iterator[InventoryProcess]:
    """A worker for the length of a block."""
    running = InventoryProcess(kafka, folder, instance, module, **env)
    try:
        yield running
    finally:
        running.close()


def digest_of(table: StockTable) -> str:
    """The digest of a table that was folded from the log, after a round trip through its wire form."""
    return msgspec.json.decode(msgspec.json.encode(table), type=StockTable).digest()
