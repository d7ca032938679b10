"""Every span, attribute and metric name, so that two services cannot spell one thing in two ways.

Must not hold logic. Metrics are `stampede_<noun>_<unit>` (counters get `_total` from the client library);
no user or purchase id is ever a metric label.
"""

from typing import Final

# Spans, in the order in which a purchase meets them.
SPAN_PURCHASE: Final = "POST /v1/purchases"
SPAN_SEND_REQUESTS: Final = "send requests"
SPAN_PROCESS_REQUESTS: Final = "process requests"
SPAN_DECIDE: Final = "decide"
SPAN_PROCESS_DECISIONS: Final = "process decisions"
SPAN_WRITE_ORDER: Final = "write order"
SPAN_PAY: Final = "pay"
SPAN_CONFIRM: Final = "confirm order"
SPAN_RELEASE: Final = "release order"

# Attributes of spans. `purchase_id` is what `devstack trace --id` looks for.
PURCHASE_ID: Final = "purchase_id"
PRODUCT_ID: Final = "product_id"
DECISION: Final = "decision"
REASON: Final = "reason"
ORDER_STATUS: Final = "order_status"
HTTP_STATUS: Final = "http.response.status_code"
MESSAGING_SYSTEM: Final = "messaging.system"
TOPIC: Final = "messaging.destination.name"
PARTITION: Final = "messaging.destination.partition.id"
OFFSET: Final = "messaging.kafka.offset"
BATCH_SIZE: Final = "messaging.batch.message_count"

# Metrics of every process.
BUILD_INFO: Final = "stampede_build_info"
SPANS_DROPPED: Final = "stampede_dropped_spans"

# gateway
HTTP_DURATION_SECONDS: Final = "stampede_http_duration_seconds"
PURCHASES: Final = "stampede_purchases"  # by outcome at the gateway
ADMISSION_QUEUE_PURCHASES: Final = "stampede_admission_queue_purchases"
READS_SHED: Final = "stampede_reads_shed"
LOOP_LAG_SECONDS: Final = "stampede_loop_lag_seconds"
MICRO_BATCH_PURCHASES: Final = "stampede_micro_batch_purchases"
LOG_APPEND_SECONDS: Final = "stampede_log_append_seconds"
PURCHASES_LOST: Final = "stampede_purchases_lost"  # acknowledged by the log, and then gone from it
GATE_STALE: Final = "stampede_gate_stale_purchases"  # by answer: without a fresh view in time
PROJECTION_LAG_RECORDS: Final = "stampede_projection_lag_records"

# ratelimit, wherever it is embedded
LIMIT_CHECKS: Final = "stampede_limit_checks"  # by outcome: allowed, refused
LIMIT_CHECKS_DEGRADED: Final = "stampede_limit_checks_degraded"  # answered locally: Redis was unavailable
LIMIT_DEGRADED: Final = "stampede_limit_degraded_state"  # 1 while Redis is unavailable
LIMIT_CALL_SECONDS: Final = "stampede_limit_call_seconds"

# inventory
DECISIONS: Final = "stampede_decisions"  # by kind and reason
BATCH_DECIDE_SECONDS: Final = "stampede_batch_decide_seconds"
DECISIONS_FENCED: Final = "stampede_decisions_fenced"
DEAD_LETTERS: Final = "stampede_dead_letters"
PARTITIONS_ASSIGNED: Final = "stampede_partitions_assigned"
PARTITION_LOAD_SECONDS: Final = "stampede_partition_load_seconds"
REQUESTS_LAG_RECORDS: Final = "stampede_requests_lag_records"

# order-writer
ORDERS: Final = "stampede_orders"  # by status
ORDER_BATCH_SECONDS: Final = "stampede_order_batch_seconds"
OUTBOX_MESSAGES: Final = "stampede_outbox_messages"
OUTBOX_AGE_SECONDS: Final = "stampede_outbox_age_seconds"
PAYMENTS: Final = "stampede_payments"  # by outcome
PAYMENTS_OPEN: Final = "stampede_payments_open"
REFUNDS_DUE: Final = "stampede_refunds_due"
PAYMENT_CIRCUIT_STATE: Final = "stampede_payment_circuit_state"
PAYMENT_CIRCUIT_OPENED: Final = "stampede_payment_circuit_opened"
COMMANDS_PENDING: Final = "stampede_commands_pending"
ORDERS_OVERRULED: Final = "stampede_orders_overruled"  # confirmed, but the log had released them
PARTITIONS_STOPPED: Final = "stampede_partitions_stopped"
HOLDS_EXPIRED: Final = "stampede_holds_expired"
