"""The metrics of an inventory worker. Names come from telemetry; no purchase or buyer id is ever a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from telemetry import names


class Meters:
    """The worker's metrics, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(names.DECISIONS, "Decisions confirmed in the log", ["kind"], registry=registry)
        self.dead_letters = Counter(names.DEAD_LETTERS, "Requests that cannot be read", ["reason"], registry=registry)
        self.assigned = Gauge(names.PARTITIONS_ASSIGNED, "Partitions owned", registry=registry)
        self.lag = Gauge(names.REQUESTS_LAG_RECORDS, "Request records not decided", ["partition"], registry=registry)
        self.load_s = Histogram(names.PARTITION_LOAD_SECONDS, "Time to load a partition", registry=registry)
        self.batch_s = Histogram(
            names.BATCH_DECIDE_SECONDS,
            "From decided to confirmed in the log",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
            registry=registry,
        )
