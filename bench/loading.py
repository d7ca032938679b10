"""How fast a partition is loaded, and what a snapshot costs the sale meanwhile: real broker, real worker.

`make bench-loading` sells 1,000,000 units of 10,000 products in one partition, and writes bench/results/loading.md.
Bounded: about three minutes on two cores, loopback only, and nothing is left behind.
"""

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from msgspec import Raw
from msgspec.structs import replace
from rich.console import Console
from rich.progress import track

from eventlog.__main__ import provision
from eventlog.kafka import consumer, producer, read_range, topic_ids, watermarks
from inventory.loading import Loaded, load
from inventory.log_reader import LogReader
from inventory.table import SLICE_FORM, encode_slice, slices
from stampede_schemas.codec import decode_envelope, encode
from stampede_schemas.identifiers import BuyerId, PurchaseId
from stampede_schemas.requests import PurchaseRequested
from stampede_schemas.snapshots import SnapshotCommitted, SnapshotPart
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS, partition_of
from tests.support.processes.inventory import InventoryProcess, Log, listing, purchase, worker
from tests.support.processes.stack import components, eventually

PARTITION = 0
PER_RECORD = 200
PACED_PER_RECORD, PACED_RECORDS_PER_S, PACED_S = 8, 250, 20
RESULTS = Path(__file__).parent / "results" / "loading.md"
AGAIN = purchase(next(name for name in map("p{}".format, count()) if partition_of(name) == PARTITION), "the-same")
TOPICS = (REQUESTS, DECISIONS, STOCK_SNAPSHOTS)


class Latency(NamedTuple):
    """Milliseconds from the append of a request record to that of its decisions, by the broker's clock."""

    at_ms: int
    took_ms: int


class Bench:
    """One broker, one partition, one worker at a time."""

    def __init__(self, kafka: str, products: int) -> None:
        self.kafka = kafka
        self.ids = topic_ids(kafka, TOPICS)
        self.log = Log(kafka)
        self.reader = LogReader(kafka)
        self.products = [name for name in map("p{}".format, range(products * 30)) if partition_of(name) == PARTITION]
        self.products = self.products[:products]
        self._number = count()

    def list_products(self) -> None:
        """Every product with plenty of stock."""
        for start in range(0, len(self.products), PER_RECORD):
            self.log.ask([listing(name, 1_000_000) for name in self.products[start : start + PER_RECORD]])

    def purchases(self, number: int) -> list[PurchaseRequested]:
        """New purchases, by buyers of their own, spread over all products."""
        template = purchase(self.products[0])
        return [
            replace(
                template,
                purchase_id=PurchaseId(f"97ee-{n:032x}"),
                buyer_id=BuyerId(f"b{n:032x}"),
                product_id=self.products[n % len(self.products)],
                fingerprint=f"{n:022x}",
            )
            for n in islice(self._number, number)
        ]

    def buy(self, number: int, said: str) -> None:
        """Append so many purchases and wait until they are decided."""
        for _ in track(range(0, number, PER_RECORD), description=said):
            self.log.ask([*self.purchases(PER_RECORD)])
        self.settle()

    def repeat(self, number: int) -> None:
        """Append one purchase again and again: decisions that leave the table as it is."""
        for _ in range(0, number, PER_RECORD):
            self.log.ask([AGAIN] * PER_RECORD)
        self.settle()

    def settle(self) -> None:
        """Wait until every request record has its decisions record."""
        self.log.flush()
        eventually(lambda: self.end(DECISIONS.name) >= self.end(REQUESTS.name), 180, "all decided")

    def end(self, topic: str) -> int:
        """The end of the partition."""
        return self.log.ends(topic)[PARTITION]

    def load(self) -> tuple[Loaded, float]:
        """Load the partition as a worker does; how long it took, in seconds."""
        began = time.perf_counter()
        loaded = self.reader.finish(PARTITION, load(PARTITION, self.ids))
        return loaded, time.perf_counter() - began

    def write_snapshot(self, loaded: Loaded) -> None:
        """A snapshot of this very point, as a worker writes it."""
        at, name = loaded.progress, "bench"
        client = producer(self.kafka)
        offsets: list[int] = []
        for index, piece in enumerate(slices(loaded.table)):
            part = encode(SnapshotPart(name, index, Raw(encode_slice(piece))))
            landed = lambda _, message: offsets.append(message.offset())  # noqa: E731 - a callback of one line
            client.produce(STOCK_SNAPSHOTS.name, part, partition=PARTITION, on_delivery=landed)
            client.flush()
        client.flush()
        commit = SnapshotCommitted(
            name, at.source_offset, at.next_offset, at.load, at.anchor, offsets, self.ids, SLICE_FORM
        )
        client.produce(STOCK_SNAPSHOTS.name, encode(commit), partition=PARTITION)
        client.flush()

    def paced(self) -> None:
        """2,000 purchases a second, for some seconds; every other record repeats one that was answered."""
        began = time.monotonic()
        for n in track(range(PACED_RECORDS_PER_S * PACED_S), description="2,000/s"):
            self.log.ask([*(self.purchases(PACED_PER_RECORD) if n % 2 else [AGAIN] * PACED_PER_RECORD)])
            time.sleep(max(0.0, began + n / PACED_RECORDS_PER_S - time.monotonic()))
        self.settle()

    def latencies(self, first: int) -> Iterator[Latency]:
        """Of every decisions record from offset `first` on."""
        client = consumer(self.kafka)
        _, end = watermarks(client, DECISIONS.name, PARTITION)
        for message in read_range(client, DECISIONS.name, PARTITION, first, end):
            envelope, at_ms = decode_envelope(message.value()), message.timestamp()[1]
            assert envelope is not None
            yield Latency(at_ms, at_ms - envelope.appended_at_ms)

    def packing(self, first: int) -> tuple[int, int]:
        """When the first and the last record of the newest snapshot were appended, if it is newer than `first`."""
        stamps = [record.appended_at_ms for record in self.log.records(STOCK_SNAPSHOTS.name, PARTITION)[first:]]
        return (stamps[0], stamps[-1]) if stamps else (0, 0)


def p99(latencies: list[Latency]) -> float:
    """In milliseconds."""
    ordered = sorted(one.took_ms for one in latencies)
    return float(ordered[int(len(ordered) * 0.99)]) if ordered else float("nan")


def measure(bench: Bench, folder: Path, reservations: int) -> dict[str, str]:
    """All figures, in the order of the table."""
    figures: dict[str, str] = {}
    with worker(bench.kafka, folder) as running:
        running.await_ready()
        bench.list_products()
        began = time.monotonic()
        bench.buy(reservations, f"{reservations:,} reservations")
        figures["sold through one worker, one partition"] = f"{reservations / (time.monotonic() - began):,.0f} units/s"
    whole, _ = bench.load()
    bench.write_snapshot(whole)
    loaded, took_s = bench.load()
    assert loaded.snapshot_at == whole.progress.source_offset
    assert loaded.table.digest() == whole.table.digest()
    figures[f"load {len(bench.products):,} products, {reservations:,} live reservations from a snapshot"] = (
        f"{took_s:.1f} s"
    )
    with worker(bench.kafka, folder) as running:
        running.await_ready()
        bench.buy(reservations // 2, "as many again, halved")
        again, with_tail_s = bench.load()
        figures[f"refold {again.refolded:,} decisions on top"] = f"{max(0.0, with_tail_s - took_s):.1f} s"
        figures |= disturbed(bench, running, again)
    figures["memory of the worker"] = figures.pop("memory of the worker")
    return figures


def disturbed(bench: Bench, running: InventoryProcess, loaded: Loaded) -> dict[str, str]:
    """The p99 of decisions at 2,000/s, without and with a snapshot being written in the middle of it."""
    due_in = loaded.table.size() - loaded.refolded
    bench.repeat(due_in - PACED_PER_RECORD * PACED_RECORDS_PER_S * PACED_S // 4)
    first, snapshots = bench.end(DECISIONS.name), bench.end(STOCK_SNAPSHOTS.name)
    bench.paced()
    begun_ms, ended_ms = bench.packing(snapshots)
    assert ended_ms, "no snapshot was written in the middle of it"
    found = list(bench.latencies(first))
    quiet = [one for one in found if one.at_ms < begun_ms - 1_000]
    meanwhile = [one for one in found if begun_ms - 200 <= one.at_ms <= ended_ms]
    memory = Path(f"/proc/{running.process.pid}/status").read_text().split("VmRSS:")[1].split("kB")[0]
    return {
        "memory of the worker": f"{int(memory) // 1024:,} MB",
        "decisions at 2,000/s, nothing else: p99": f"{p99(quiet):.0f} ms ({len(quiet):,} records)",
        f"the same while {loaded.table.size():,} things are written down: p99": f"{p99(meanwhile):.0f} ms "
        f"({len(meanwhile):,} records, {(ended_ms - begun_ms) / 1000:.1f} s)",
        "the slowest of them": f"{max((one.took_ms for one in meanwhile), default=0)} ms",
    }


def report(figures: dict[str, str], command: str, title: str = "Loading and snapshots") -> str:
    """The table as Markdown, with where it comes from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    where = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, broker beside it"
    lines = [
        f"# {title}",
        "",
        f"`{command}` on {where}, commit {commit.stdout.strip()}.",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in figures.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it and write the table down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reservations", type=int, default=1_000_000)
    parser.add_argument("--products", type=int, default=10_000)
    asked = parser.parse_args()
    with components() as running, TemporaryDirectory() as folder:
        provision(running.kafka, 1)
        figures = measure(Bench(running.kafka, asked.products), Path(folder), asked.reservations)
    text = report(figures, f"make bench-loading RESERVATIONS={asked.reservations}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    Console().print(text)


if __name__ == "__main__":
    main()
