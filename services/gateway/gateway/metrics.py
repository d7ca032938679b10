"""The metrics of the gateway. Labels are outcomes from fixed lists; no id is ever one."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.http.problems import KINDS
from telemetry import names

OUTCOMES = ("accepted", "replayed", "reserved", "confirmed", *(kind.slug for kind in KINDS))


class Metrics:
    """One set per process, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        purchases = Counter(names.PURCHASES, "Purchase requests by answer", ["outcome"], registry=registry)
        self.purchases = {outcome: purchases.labels(outcome) for outcome in OUTCOMES}
        self.waiting = Gauge(names.ADMISSION_QUEUE_PURCHASES, "Requests waiting for a micro-batch", registry=registry)
        self.reads_shed = Counter(names.READS_SHED, "Status reads turned away under load", registry=registry)
        self.loop_lag = Gauge(names.LOOP_LAG_SECONDS, "How late the event loop is, on average", registry=registry)
        self.micro_batch = Histogram(
            names.MICRO_BATCH_PURCHASES,
            "Requests of one micro-batch",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 500),
            registry=registry,
        )
        self.append = Histogram(
            names.LOG_APPEND_SECONDS,
            "From handing a record to the client library to its acknowledgement",
            buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1, 5),
            registry=registry,
        )
        self.lag = Gauge(names.PROJECTION_LAG_RECORDS, "Decisions records not applied yet", registry=registry)
        self.fenced = Gauge(names.DECISIONS_FENCED, "Fenced decisions records seen", registry=registry)
        self.lost = Gauge(names.PURCHASES_LOST, "Acknowledged purchases that the log lost", registry=registry)
        stale = Counter(
            names.GATE_STALE, "Purchases that the gate judged without a fresh view", ["answer"], registry=registry
        )
        self.stale = {answer: stale.labels(answer) for answer in ("refused", "appended")}
        self.duration = Histogram(
            names.HTTP_DURATION_SECONDS,
            "Purchase requests, from the head read to the answer written",
            buckets=(0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1, 2.5, 5),
            registry=registry,
        )
