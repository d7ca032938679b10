"""How much room a thousand snapshots take: real broker, real worker, one partition, small segments.

`make bench-snapshots` has a worker write SNAPSHOTS of them, looks at the broker's disk all the while, and then loads
the partition in three ways. It writes bench/results/snapshots.md. Bounded: some minutes on two cores, loopback only,
and nothing is left behind.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console

from bench.loading import PARTITION, PER_RECORD, Bench, report
from eventlog.__main__ import provision
from eventlog.kafka import consumer, watermarks
from stampede_schemas.codec import decode_snapshot
from stampede_schemas.snapshots import SnapshotCommitted
from stampede_schemas.topics import STOCK_SNAPSHOTS
from tests.support.processes.inventory import digest_of, worker
from tests.support.processes.stack import components

MIB = 1024 * 1024
SEGMENT_BYTES = MIB  # a broker takes no less
RETENTION_BYTES = 8 * MIB
CHECKED_EVERY_S = 10.0  # by the local broker: so long may it be late
DELETED_AFTER_MS = 1_000  # what is dropped leaves the disk
RESERVATIONS = 2_000
PRODUCTS = 20
AHEAD_RECORDS = 20  # of requests that wait to be decided
WORKER = "bench.snapshots_worker"
RESULTS = Path(__file__).parent / "results" / "snapshots.md"


class Look(NamedTuple):
    """The topic at an instant: snapshots and bytes written so far, and bytes on the broker's disk."""

    snapshots: int
    written: int
    kept: int


class Watch:
    """Reads every record of the topic as it comes, and measures the folder of its partition."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self._folder = folder
        self._client: Consumer = consumer(kafka, **{"fetch.wait.max.ms": 10, "auto.offset.reset": "error"})
        self._client.assign([TopicPartition(STOCK_SNAPSHOTS.name, PARTITION, 0)])
        self.snapshots = self.written = 0
        self.set_bytes = 0  # of the newest snapshot, all its parts
        self._parts_bytes = 0

    def look(self) -> Look:
        """Take in what came, then look at the disk."""
        while messages := self._client.consume(500, timeout=0.05):
            for message in messages:
                assert message.error() is None, message.error()  # the topic lost what was not read yet
                value = message.value()
                assert value is not None
                self.written += len(value)
                self._parts_bytes += len(value)
                if isinstance(decode_snapshot(value), SnapshotCommitted):
                    self.snapshots += 1
                    self.set_bytes, self._parts_bytes = self._parts_bytes, 0
        return Look(self.snapshots, self.written, self._kept())

    def _kept(self) -> int:
        """Bytes in the segments; one that goes while we look is gone."""
        total = 0
        for segment in self._folder.glob("*.log"):
            try:
                total += segment.stat().st_size
            except FileNotFoundError:
                continue
        return total


def keep_little() -> None:
    """Let this process know a registry in which a thousand small snapshots are many times more than is kept.

    A worker starts, and goes on, only with topics that are set as its registry says.
    """
    STOCK_SNAPSHOTS.config.update(
        {
            "segment.bytes": str(SEGMENT_BYTES),
            "retention.bytes": str(RETENTION_BYTES),
            "file.delete.delay.ms": str(DELETED_AFTER_MS),
        }
    )


def measure(bench: Bench, watch: Watch, folder: Path, snapshots: int) -> tuple[dict[str, str], list[Look]]:
    """The figures, and a look after each tenth of the snapshots."""
    looks: list[Look] = []
    with worker(bench.kafka, folder, module=WORKER, STAMPEDE_SNAPSHOT_DECISIONS_MIN="1000") as running:
        running.await_ready()
        bench.list_products()
        bench.buy(RESERVATIONS, f"{RESERVATIONS:,} reservations")
        before = watch.look().snapshots
        began = time.monotonic()
        while (seen := watch.look()).snapshots - before < snapshots:
            bench.repeat(AHEAD_RECORDS * PER_RECORD)
            if seen.snapshots - before >= (len(looks) + 1) * snapshots // 10:
                looks.append(seen)
        took_s = time.monotonic() - began
        looks.append(watch.look())
        _let_the_broker_drop(watch)
        settled = watch.look()
        state = running.get(f"/state?partition={PARTITION}")
    newest, newest_s = bench.load()
    assert newest.table.digest() == state["sha256"], "loaded is not what the worker had"
    assert newest.snapshot_at >= 0, "no snapshot was found"
    folded = bench.log.answered(PARTITION)[0]
    assert digest_of(folded) == digest_of(newest.table), "loaded is not the fold of the whole log"
    with worker(bench.kafka, folder, module=WORKER) as successor:
        successor.await_ready()
        assert successor.get(f"/state?partition={PARTITION}")["sha256"] == state["sha256"]
    bound = RETENTION_BYTES + 2 * SEGMENT_BYTES + round(watch.set_bytes * CHECKED_EVERY_S * snapshots / took_s)
    most = max(look.kept for look in looks)
    assert most <= bound, f"{most:,} bytes were kept: more than {bound:,}"
    assert settled.kept <= RETENTION_BYTES + 2 * SEGMENT_BYTES, f"{settled.kept:,} bytes stay"
    first, end = watermarks(consumer(bench.kafka), STOCK_SNAPSHOTS.name, PARTITION)
    return {
        f"snapshots of {newest.table.size():,} things, written one after the other": f"{settled.snapshots:,}",
        "a second": f"{snapshots / took_s:.0f}",
        "written in all, before compression": f"{settled.written / MIB:,.1f} MiB",
        f"kept, with `retention.bytes` of {RETENTION_BYTES // MIB} MiB: at most": f"{most / MIB:,.1f} MiB",
        "the same, once the broker has looked": f"{settled.kept / MIB:,.1f} MiB",
        "records of the topic that are left": f"{end - first:,} of {end:,}",
        "load from the newest snapshot": f"{newest_s:.2f} s, {newest.refolded:,} decisions on top",
        "the same table as the worker's, a successor's, and the fold of the whole log": "yes",
    }, looks


def _let_the_broker_drop(watch: Watch) -> None:
    """Wait until it has dropped what is too much; it looks from time to time."""
    deadline = time.monotonic() + 3 * CHECKED_EVERY_S
    while watch.look().kept > RETENTION_BYTES + 2 * SEGMENT_BYTES and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> None:
    """Run it and write the table down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snapshots", type=int, default=1_000)
    asked = parser.parse_args()
    with components() as running, TemporaryDirectory() as folder:
        keep_little()
        provision(running.kafka, 1)
        watch = Watch(running.kafka, running.layout.root / "kafka" / "data" / f"{STOCK_SNAPSHOTS.name}-{PARTITION}")
        figures, looks = measure(Bench(running.kafka, PRODUCTS), watch, Path(folder), asked.snapshots)
    head = "| snapshots so far | written, before compression | on the broker's disk |\n|---:|---:|---:|\n"
    lines = [f"| {look.snapshots:,} | {look.written / MIB:,.1f} MiB | {look.kept / MIB:,.1f} MiB |" for look in looks]
    text = report(figures, f"make bench-snapshots SNAPSHOTS={asked.snapshots}", "The room that snapshots take")
    text += "\n" + head + "\n".join(lines) + "\n"
    RESULTS.write_text(text)
    Console().print(text)


if __name__ == "__main__":
    main()
