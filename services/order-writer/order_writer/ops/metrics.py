"""The metrics of an order-writer. Names come from telemetry; no purchase or buyer id is ever a label."""

from collections import Counter as Counts

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from order_writer.unit_of_work import UnitOfWork
from telemetry import names
from telemetry.ops import build_registry
from telemetry.tracing import Tracing

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The process's own registry (two apps in one process share nothing) and what is in it."""

    def __init__(self, instance: str, tracing: Tracing | None = None) -> None:
        self.registry: CollectorRegistry = build_registry("order-writer", instance, tracing)
        self.orders = Counter(names.ORDERS, "Rows that reached a status", ["status"], registry=self.registry)
        self.batch_seconds = Histogram(
            names.ORDER_BATCH_SECONDS, "One batch, read to committed", buckets=SECONDS, registry=self.registry
        )
        self.fenced = Counter(names.DECISIONS_FENCED, "Records that change nothing", ["reason"], registry=self.registry)
        self.payments = Counter(names.PAYMENTS, "Answers of the provider", ["outcome"], registry=self.registry)
        self.circuit_state = Gauge(
            names.PAYMENT_CIRCUIT_STATE, "0 closed, 1 half open, 2 open: no call is made", registry=self.registry
        )
        self.circuit_opened = Counter(
            names.PAYMENT_CIRCUIT_OPENED,
            "Times that calls to the payment provider were stopped",
            registry=self.registry,
        )
        self.expired = Counter(names.HOLDS_EXPIRED, "Holds that ran out", registry=self.registry)
        self.dead_letters = Counter(
            names.DEAD_LETTERS, "Records that can never be acted on", ["reason"], registry=self.registry
        )
        self.overruled = Counter(
            names.ORDERS_OVERRULED, "Confirmed orders that the log had released", registry=self.registry
        )
        self.waiting = {  # by column of what `Health` asks Postgres
            column: Gauge(name, text, registry=self.registry)
            for column, name, text in (
                ("outbox", names.OUTBOX_MESSAGES, "Transactions whose messages are not sent"),
                ("outbox_age", names.OUTBOX_AGE_SECONDS, "Since when the oldest of them waits"),
                ("payments", names.PAYMENTS_OPEN, "Payments and voids without an answer"),
                ("refunds", names.REFUNDS_DUE, "Captured, to be given back, not yet answered"),
                ("pending", names.COMMANDS_PENDING, "Commands that wait for their purchase"),
                ("stopped", names.PARTITIONS_STOPPED, "Partitions whose decisions cannot be applied"),
            )
        }

    def changed(self, unit: UnitOfWork) -> None:
        """Count what a committed unit made of orders."""
        self.overruled.inc(unit.overruled)
        for reason in unit.dead_letters:
            self.dead_letters.labels(reason).inc()
        for status, count in Counts(state.status for state in unit.changed).items():
            self.orders.labels(status).inc(count)
