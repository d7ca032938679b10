"""What tests of the gateway are built from: decisions, an in-memory producer, limits, and a whole gateway process."""

import asyncio
import hashlib
import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from confluent_kafka import KafkaError

from devstack.ports import anywhere, is_free
from gateway.admission.decide import Gate
from gateway.http import problems
from gateway.read_side.projection import Projection
from gateway.read_side.purchase_memory import PurchaseMemory
from gateway.read_side.purchase_state import Accepted, Purchase
from ratelimit.limiter import Subject, Verdict
from service.problem_details import Problem
from stampede_schemas.codec import split_requests
from stampede_schemas.decisions import (
    AnyDecision,
    Ignored,
    ProductListed,
    Rejected,
    RejectReason,
    Released,
    Reserved,
    Restocked,
)
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId, RequestId
from stampede_schemas.order_events import OrderConfirmed, OrderReleased
from stampede_schemas.requests import PurchaseRequested
from tests.support.processes.stack import LocalStack, eventually

LAMP = ProductId("lamp")
NOWHERE = Position(0, 0, 0)
ADMIN_KEY = "operators-of-the-test"
IDENTITY_KEY = "an identity key for tests, and for nothing else"


def listed(stock: int = 10, product: ProductId = LAMP, opens_at_ms: int | None = None) -> ProductListed:
    """The product is on sale."""
    return ProductListed(
        request_id=RequestId(f"list-{product}"),
        product_id=product,
        name="Lamp",
        unit_price_minor=500,
        currency="EUR",
        stock=stock,
        per_buyer_limit=10,
        hold_ms=60_000,
        status="open",
        available_after=stock,
        opens_at_ms=None if opens_at_ms is None else Millis(opens_at_ms),
    )


def reserved(
    purchase: str = "buy", left: int = 9, number: int = 1, quantity: int = 1, fingerprint: str = "f"
) -> Reserved:
    """`quantity` units are held for `purchase`, `left` are available."""
    return Reserved(
        purchase_id=PurchaseId(purchase),
        buyer_id=BuyerId("ann"),
        product_id=LAMP,
        quantity=quantity,
        payment_method="ok",
        fingerprint=fingerprint,
        available_after=left,
        reservation_no=number,
        unit_price_minor=500,
        currency="EUR",
        hold_ms=60_000,
    )


def rejected(purchase: str = "buy", left: int = 0, reason: RejectReason = "sold_out") -> Rejected:
    """The log's no."""
    return Rejected(
        purchase_id=PurchaseId(purchase),
        buyer_id=BuyerId("ann"),
        product_id=LAMP,
        quantity=1,
        payment_method="ok",
        fingerprint="f",
        available_after=left,
        reason=reason,
    )


def released(purchase: str, at: Position, left: int) -> Released:
    """The units of the reservation made at `at` are available again."""
    return Released(
        purchase_id=PurchaseId(purchase),
        buyer_id=BuyerId("ann"),
        product_id=LAMP,
        quantity=1,
        payment_method="ok",
        fingerprint="f",
        available_after=left,
        reservation=at,
        reason="hold_expired",
    )


def restocked(quantity: int, left: int, request: str = "more") -> Restocked:
    """Units were added."""
    return Restocked(request_id=RequestId(request), product_id=LAMP, quantity=quantity, available_after=left)


def answered_before(purchase: str, at: Position) -> Ignored:
    """A duplicate: its first answer is that of the request at `at`."""
    return Ignored(v=2, reason="answered", product_id=LAMP, purchase_id=PurchaseId(purchase), of=at)


def confirmed(purchase: str = "buy", version: int = 3, at: Position = NOWHERE) -> OrderConfirmed:
    """The order is sold."""
    return OrderConfirmed(**_order(purchase, version, at), status="confirmed")


def given_back(purchase: str = "buy", version: int = 4, at: Position = NOWHERE) -> OrderReleased:
    """The order is released."""
    return OrderReleased(**_order(purchase, version, at), status="released", reason="cancelled")


def _order(purchase: str, version: int, at: Position) -> dict[str, Any]:
    return {
        "purchase_id": PurchaseId(purchase),
        "version": version,
        "buyer_id": BuyerId("ann"),
        "product_id": LAMP,
        "quantity": 1,
        "reservation": at,
        "reservation_no": 1,
        "unit_price_minor": 500,
        "currency": "EUR",
        "payment_method": "ok",
        "occurred_at_ms": Millis(1),
    }


def wanted(purchase: str = "buy", product: str = "lamp") -> PurchaseRequested:
    """A purchase on its way to the log."""
    return PurchaseRequested(
        purchase_id=PurchaseId(purchase),
        buyer_id=BuyerId("ann"),
        product_id=ProductId(product),
        quantity=1,
        payment_method="ok",
        fingerprint="f",
    )


def folded(*records: list[AnyDecision]) -> Projection:
    """A projection after these records of partition 0; the first answers request record 0."""
    projection = Projection()
    for source_offset, record in enumerate(records):
        projection.fold(0, source_offset, record)
    return projection


class AllowAll:
    """Limits that refuse only the users named `refused`, and remember how they were asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def check(self, batch: Sequence[Subject]) -> list[Verdict]:
        """One verdict each; `meanwhile` happens before."""
        if batch:
            self.calls.append(len(batch))
            self.meanwhile()
        return [Verdict(subject.user != "refused", None, 1, 0, degraded=False) for subject in batch]


class OpenGate:
    """Open but for the products that it has another word for."""

    def __init__(self, closed: dict[str, Gate] | None = None) -> None:
        self.closed = closed or {}

    def says(self, product_id: ProductId) -> Gate:
        """What it was told to say."""
        return self.closed.get(product_id, "open")

    def refusal(self, product_id: ProductId) -> Problem:
        """Always this one."""
        return Problem(problems.SOLD_OUT, "Nothing is left.")


class NoRows:
    """Rows that prove the absence of all purchases but those named; `asked` are those that were looked for."""

    def __init__(self, memory: PurchaseMemory, rows: Iterable[Purchase] = (), *, away: bool = False) -> None:
        self._memory, self._rows, self._away = memory, {row.purchase_id: row for row in rows}, away
        self.asked: list[PurchaseId] = []

    async def settle(self, purchase_ids: Sequence[PurchaseId]) -> set[PurchaseId]:
        """Rows go into memory."""
        self.asked += purchase_ids
        if self._away:
            return set()
        for one in purchase_ids:
            if one in self._rows:
                self._memory.merge(self._rows[one])
        return set(purchase_ids) - self._rows.keys()

    async def overdue(self, known: Accepted) -> bool:
        """Nothing is ever lost."""
        return False


class EndOfRequests:
    """Where `requests` ends, for a `Freshness`; silent while `end` is None. It counts the questions."""

    def __init__(self, end: int | None = 0) -> None:
        self.end, self.asked = end, 0

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """The same end everywhere."""
        self.asked += 1
        await asyncio.sleep(0)
        return {} if self.end is None else dict.fromkeys(partitions, self.end)


class _Report:
    def __init__(self, partition: int, offset: int) -> None:
        self._partition, self._offset = partition, offset

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_700_000_000_000


class MemoryProducer:
    """A producer whose log is a list: acknowledges at the next poll, or fails, or keeps silent, as it is told."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []
        self.failing = False
        self.silent = False
        self._reports: list[Callable[[], None]] = []
        self._offsets = itertools.count()

    def produce(
        self, topic: str, value: bytes, *, partition: int, on_delivery: Callable[[Any, Any], None], key: str = ""
    ) -> None:
        """Append."""
        self.records.append((partition, value))
        error = KafkaError(KafkaError._MSG_TIMED_OUT) if self.failing else None
        report = _Report(partition, next(self._offsets))
        self._reports.append(lambda: on_delivery(error, report))

    def poll(self, timeout: float) -> int:
        """Serve the reports."""
        if self.silent:
            return 0
        reports, self._reports = self._reports, []
        for report in reports:
            report()
        return len(reports)

    def sizes(self) -> list[int]:
        """How many requests each record holds."""
        return [len(split_requests(value)) for _, value in self.records]


class GatewayProcess:
    """One real gateway over real components; answers 201 to operators when an inventory runs beside it."""

    program: ClassVar[tuple[str, ...]] = ("-m", "gateway")

    def __init__(self, stack: LocalStack, folder: Path, **env: str) -> None:
        free = (port for port in anywhere() if is_free(port))
        self.http, self.admin, self.ops = next(free), next(free), next(free)
        self._log = folder / "gateway.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program],
                env={key: value for key, value in os.environ.items() if not key.startswith("STAMPEDE_")}
                | {
                    "STAMPEDE_KAFKA": stack.kafka,
                    "STAMPEDE_POSTGRES": stack.postgres,
                    "STAMPEDE_REDIS": stack.redis,
                    "STAMPEDE_AUTH": "header",
                    "STAMPEDE_IDENTITY_KEY": IDENTITY_KEY,
                    "STAMPEDE_ADMIN_KEY_SHA256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest(),
                    "STAMPEDE_HTTP_PORT": str(self.http),
                    "STAMPEDE_ADMIN_PORT": str(self.admin),
                    "STAMPEDE_OPS_PORT": str(self.ops),
                    "STAMPEDE_SPAN_FILE": str(folder / "spans.jsonl"),
                    "STAMPEDE_LIMITS": "user:token_bucket:1000/s",
                }
                | env,
                stdout=log,
                stderr=log,
            )

    @property
    def url(self) -> str:
        """The buyers' listener."""
        return f"http://127.0.0.1:{self.http}"

    @property
    def admin_url(self) -> str:
        """The operators' listener."""
        return f"http://127.0.0.1:{self.admin}"

    def said(self) -> str:
        """Everything it logged."""
        return self._log.read_text(errors="replace")

    def await_ready(self) -> None:
        """Wait until it would be sent buyers."""
        eventually(self._ready, 30.0, "the gateway's readiness")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:  # noqa: S310 - loopback, http
                return bool(answer.status == 200)
        except OSError:
            return False

    def close(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
