"""Trouble of `stock-snapshots` costs the snapshot: the worker goes on deciding, and writes the next one."""

import time
from collections.abc import Callable
from pathlib import Path

from eventlog.__main__ import provision
from stampede_schemas.codec import decode_snapshot
from stampede_schemas.snapshots import SnapshotCommitted
from stampede_schemas.topics import STOCK_SNAPSHOTS, partition_of
from tests.support.processes.inventory import Log, digest_of, listing, purchase, worker
from tests.support.processes.servers import configure
from tests.support.processes.stack import components, eventually

TEA = "tea"
DECIDED_S_MAX = 1.0


def take_at_most(kafka: str, size: int) -> None:
    """Change the limit of `stock-snapshots` at the broker."""
    configure(kafka, STOCK_SNAPSHOTS, "max.message.bytes", str(size))


def sell(log: Log) -> None:
    """Ask for one more, and for an old one 19 times: a snapshot is due when more is decided than is remembered.

    All are decided within a second, whatever becomes of snapshots.
    """
    began = time.monotonic()
    log.ask([purchase(TEA), *[purchase(TEA, "again")] * 19])
    log.flush()
    log.await_answers(partition_of(TEA))
    assert time.monotonic() - began < DECIDED_S_MAX, f"{time.monotonic() - began:.2f} s"


def sell_until(log: Log, condition: Callable[[], bool], what: str) -> None:
    """Sell as long as it takes."""

    def sold_and_so() -> bool:
        sell(log)
        return condition()

    eventually(sold_and_so, 60, what)


def snapshots(log: Log) -> int:
    """How many are complete, beside the one at birth."""
    found = [decode_snapshot(it.value or b"") for it in log.records(STOCK_SNAPSHOTS.name, partition_of(TEA))]
    return sum(isinstance(record, SnapshotCommitted) and bool(record.parts) for record in found)


def test_a_snapshot_that_is_refused_costs_nothing_else(tmp_path: Path) -> None:
    """Once a part was refused the process ended, packed the same part after its restart, and ended again."""
    with components() as running:
        provision(running.kafka, 1)
        log = Log(running.kafka)
        with worker(running.kafka, tmp_path, STAMPEDE_SNAPSHOT_DECISIONS_MIN="5") as process:
            process.await_ready()
            log.ask([listing(TEA, 1_000)])
            log.flush()
            log.await_answers(partition_of(TEA))
            take_at_most(running.kafka, 100)
            refused = tmp_path / "inventory-0.log"
            sell_until(log, lambda: "no snapshot this time" in refused.read_text(), "a refused part")
            assert snapshots(log) == 0
            take_at_most(running.kafka, 1_048_588)
            sell_until(log, lambda: snapshots(log) > 0, "the next snapshot")
            assert process.process.poll() is None
            table, _, _ = log.await_answers(partition_of(TEA))
            assert process.get(f"/state?partition={partition_of(TEA)}")["sha256"] == digest_of(table)
