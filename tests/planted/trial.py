"""One planted bug after the other on one real stack: a small sale over HTTP, then the checker, until it names the bug.

Between two bugs the services are stopped and topics and rows recreated, so that each verdict is about one bug.
"""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import asyncpg
from confluent_kafka import KafkaException
from msgspec.structs import replace

from devstack.load_generator import LoadGenerator, Sale
from devstack.processes import LIMITS
from eventlog.__main__ import provision
from eventlog.kafka import TopicsWrong, admin_client, producer
from replay import judge, live
from replay.failure import CannotCheck
from replay.journal import Journal, Limits
from stampede_schemas.codec import (
    decode_request,
    encode,
    encode_decisions,
    encode_requests,
    source_crc,
    split_requests,
)
from stampede_schemas.decisions import Rejected
from stampede_schemas.identifiers import BuyerId, Millis, ProductId, PurchaseId, WriterEpoch
from stampede_schemas.requests import PurchaseRequested
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS, ORDERS, PARTITIONS, REQUESTS, TOPICS, partition_of
from tests.planted.bugs import CONTROL, Planted
from tests.planted.builds.planting import FILE
from tests.support.builders.reports import all_of
from tests.support.builders.requests import retire
from tests.support.processes.inventory import Log, listing, purchase
from tests.support.processes.stack import ROOT, LocalStack, eventually, stack

BUILDS = {
    "inventory": "tests.planted.builds.inventory",
    "order-writer": "tests.planted.builds.order_writer",
    "gateway": "tests.planted.builds.gateway",
}
UNITS, BUYERS, ARRIVALS_PER_S, PATIENCE_S = 40, 120, 60.0, 7.0
LOOK_EVERY_S = 0.5
POISON = b"\xff no request \xff"
LARGE_POISON = POISON + bytes(3 * 1024 * 1024)  # some kilobytes for the broker
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"


class Caught(NamedTuple):
    """What came of a bug: the rules that were violated, the first place, and the seconds since the sale began."""

    bug: Planted
    violated: dict[str, str]
    seconds: float

    @property
    def named(self) -> bool:
        """Whether the right rule named it; the shipped services must break none."""
        return self.bug.rule in self.violated if self.bug.rule else not self.violated


class Stage:
    """The stack that all bugs share."""

    def __init__(self, running: LocalStack, order: Path) -> None:
        self._running, self._order = running, order
        self._fresh = True

    def play(self, bug: Planted) -> Caught:
        """Plant it, sell, check."""
        self._set(bug)
        sale = Sale(
            units=UNITS,
            buyers=BUYERS,
            declined_share=0.2,
            duplicates_share=0.5,
            arrivals_per_s=ARRIVALS_PER_S,
            patience_s=PATIENCE_S,
        )
        began = time.monotonic()
        stirring = threading.Thread(target=self._stir, args=(bug, sale.product_id))
        stirring.start()
        told = asyncio.run(LoadGenerator(self._running.endpoints, sale).run())
        told.limits = Limits(LIMITS)
        stirring.join()
        if bug.zombie:
            self._zombie(sale.product_id)
        violated = self._look(bug, told)
        return Caught(bug, violated, time.monotonic() - began)

    def _set(self, bug: Planted) -> None:
        self._order.write_text(bug.order)
        for left in self._order.parent.glob(f"{self._order.name}.*"):
            left.unlink()
        if not self._fresh:
            self._running.scale(gateway=0, inventory=0, order_writer=0)
            self._running.layout.payments.unlink(missing_ok=True)
            _new_topics(self._running.kafka)
            asyncio.run(_no_rows(self._running.postgres))
        if not self._fresh or bug is not CONTROL:
            self._running.scale(gateway=0, inventory=0, order_writer=0)
            self._running.scale(gateway=1, inventory=1, order_writer=1)
        self._fresh = False

    def _stir(self, bug: Planted, product_id: str) -> None:
        """What happens beside the gateway: repeats, poison, one unit that three want, a retired product, a kill -9."""
        log, partition = Log(self._running.kafka), partition_of(product_id)

        def bought() -> list[bytes]:
            values = [record.value or b"" for record in log.records(REQUESTS.name, partition)]
            return [value for value in values if b'"PurchaseRequested"' in value]

        eventually(lambda: len(bought()) > 2, PATIENCE_S, "a purchase in the log")
        again = bought()[0]
        log.append(partition, again)
        log.append(partition, _with_another_body(again))
        log.append(partition, POISON)
        log.append(partition, LARGE_POISON)
        only, retired = _others(partition)
        log.ask([listing(only, 1), *(purchase(only) for _ in range(3))])
        won = purchase(retired)
        log.ask([listing(retired, 1), won, retire("retire", ProductId(retired)), won, purchase(retired)])
        log.flush()
        if bug.cancels:
            self._cancel(log, ProductId(only))
        if bug.kills:
            self._running.kill(bug.kills)

    def _cancel(self, log: Log, product_id: ProductId) -> None:
        """Once somebody has paid for it, an operator cancels the product; another cancellation is of before a sale."""
        later = ProductId(f"{product_id}-later")
        before = log.ends(REQUESTS.name)[partition_of(later)]
        log.ask([listing(later, 1), purchase(later)])
        log.flush()

        def paid() -> bool:
            told = [record.value or b"" for number in range(PARTITIONS) for record in log.records(ORDERS.name, number)]
            sold = [value for value in told if b'"OrderConfirmed"' in value]
            return all(any(b'"%b"' % name.encode() in value for value in sold) for name in (product_id, later))

        eventually(paid, what="two paid orders")
        after = log.ends(REQUESTS.name)[partition_of(product_id)]
        writer = producer(self._running.kafka)
        for command in (all_of(product_id, after), all_of(later, before, "late")):
            partition = partition_of(command.product_id)
            writer.produce(ORDER_COMMANDS.name, encode(command), partition=partition)
        assert writer.flush(10) == 0

    def _zombie(self, product_id: str) -> None:
        """A worker that was overtaken writes late: a first answer to the next request, and void for everyone."""
        log, partition = Log(self._running.kafka), partition_of(product_id)
        asked = encode_requests([purchase(_others(partition)[0], "p-late")])
        late = Rejected(
            purchase_id=PurchaseId("p-zombie"),
            buyer_id=BuyerId("b-zombie"),
            product_id=ProductId(_others(partition)[0]),
            quantity=1,
            payment_method="ok",
            fingerprint="f",
            available_after=0,
            reason="unknown_product",
        )
        eventually(lambda: _at_rest(log, partition), what="every request answered")
        end = log.ends(REQUESTS.name)[partition]
        forged = encode_decisions(
            end, source_crc(asked), WriterEpoch("f" * 32), 0, Millis(time.time_ns() // 1_000_000), [late]
        )
        writer = producer(self._running.kafka)
        writer.produce(DECISIONS.name, forged, partition=partition)
        assert writer.flush(10) == 0
        log.append(partition, asked)
        log.flush()
        eventually(lambda: _answered(log, partition) > end, what="the request after the zombie answered")

    def _look(self, bug: Planted, told: Journal) -> dict[str, str]:
        """Judge again and again: until the bug is named, or for as long as it may take."""
        deadline = time.monotonic() + bug.wait_s
        violated: dict[str, str] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(CannotCheck, OSError):
                violated = self._verdict(told)
                if violated if bug is CONTROL else bug.rule in violated:
                    break
                if bug is CONTROL and _quiet(told):
                    break
            time.sleep(LOOK_EVERY_S)
        return violated

    def _verdict(self, told: Journal) -> dict[str, str]:
        """What `replay verify --journal` finds."""
        evidence = live.whole_system(self._running.layout.endpoints)
        evidence.journal = told
        return {found.name: found.first[0].at for found in judge.judge(evidence) if found.violations}


def _quiet(told: Journal) -> bool:
    return told.count("confirmed") >= UNITS


def _others(partition: int) -> list[str]:
    """Two products of that partition."""
    names = (name for name in (f"another-{n}" for n in range(1_000)) if partition_of(name) == partition)
    return list(islice(names, 2))


def _with_another_body(record: bytes) -> bytes:
    """The same purchases, each asking for something else."""
    requests = [decode_request(raw) for raw in split_requests(record)]
    bought = [request for request in requests if isinstance(request, PurchaseRequested)]
    return encode_requests([replace(request, fingerprint="another body") for request in bought])


def _at_rest(log: Log, partition: int) -> bool:
    return _answered(log, partition) == len(log.records(REQUESTS.name, partition))


def _answered(log: Log, partition: int) -> int:
    return len(log.answered(partition)[1])


def _new_topics(kafka: str) -> None:
    """Delete the topics and make them again; deleting takes the broker a moment."""
    for future in admin_client(kafka).delete_topics([topic.name for topic in TOPICS]).values():
        future.result()

    def made() -> bool:
        try:
            provision(kafka, 1)
        except (KafkaException, TopicsWrong):
            return False
        return True

    eventually(made, what="new topics")


async def _no_rows(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        names = ", ".join(row["tablename"] for row in await connection.fetch(_TABLES))
        await connection.execute(f"TRUNCATE {names}")
    finally:
        await connection.close()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stack of test builds, for as many bugs as wanted."""
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "planted"
        order.write_text(CONTROL.order)
        with stack({FILE: str(order), "PYTHONPATH": str(ROOT)}, modules=BUILDS) as running:
            yield Stage(running, order)
