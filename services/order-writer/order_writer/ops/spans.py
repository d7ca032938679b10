"""The order-writer's spans: one a purchase in the buyer's own trace, one a batch with links. Never raises, never waits.

No span object is built for a purchase whose trace is not recorded.
"""

import time

from order_writer.saga import orders
from order_writer.saga.decision_batch import Row
from order_writer.unit_of_work import UnitOfWork
from stampede_schemas.topics import DECISIONS
from telemetry import names
from telemetry.tracing import Kind, Tracing

LINKS_MAX = 128


class Spans:
    """Records what was done, after it was committed."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def batch(self, stored: list[Row], decisions: int, start_ns: int) -> None:
        """The rows that one committed batch of `decisions` wrote."""
        end_ns = time.time_ns()
        recorded = [row for row in stored if self._tracing.sampled(row.traceparent)]
        for row in recorded:
            self._tracing.record(
                names.SPAN_WRITE_ORDER,
                parent=row.traceparent,
                start_ns=start_ns,
                end_ns=end_ns,
                attributes={
                    names.PURCHASE_ID: row.purchase_id,
                    names.ORDER_STATUS: row.status,
                    names.REASON: getattr(row.decision, "reason", ""),
                    names.PARTITION: row.position.partition,
                    names.OFFSET: row.position.offset,
                },
            )
        if recorded:
            self._tracing.record(
                names.SPAN_PROCESS_DECISIONS,
                start_ns=start_ns,
                end_ns=end_ns,
                kind=Kind.CONSUMER,
                attributes={
                    names.MESSAGING_SYSTEM: "kafka",
                    names.TOPIC: DECISIONS.name,
                    names.BATCH_SIZE: decisions,
                },
                links=[row.traceparent for row in recorded[:LINKS_MAX] if row.traceparent],
            )

    def changes(self, unit: UnitOfWork, start_ns: int) -> None:
        """Orders that a committed unit confirmed or released."""
        end_ns = time.time_ns()
        for state in unit.changed:
            order = state.order
            if self._tracing.sampled(order.traceparent):
                confirmed = isinstance(state, orders.Confirmed)
                self._tracing.record(
                    names.SPAN_CONFIRM if confirmed else names.SPAN_RELEASE,
                    parent=order.traceparent,
                    start_ns=start_ns,
                    end_ns=end_ns,
                    attributes={names.PURCHASE_ID: order.purchase_id}
                    | ({} if isinstance(state, orders.Confirmed) else {names.REASON: state.reason}),
                )

    def payment(self, order: orders.Order, start_ns: int, outcome: str) -> None:
        """One call of the payment provider."""
        if self._tracing.sampled(order.traceparent):
            self._tracing.record(
                names.SPAN_PAY,
                parent=order.traceparent,
                start_ns=start_ns,
                end_ns=time.time_ns(),
                kind=Kind.CLIENT,
                attributes={names.PURCHASE_ID: order.purchase_id, "outcome": outcome, "method": order.payment_method},
            )
