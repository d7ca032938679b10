"""What one order-writer persists, beside what a bare insert loop does into the same schema of the same server.

`make bench-writer` takes some 80 s on two cores, loopback only, and leaves nothing behind. Broker and database share
the cores with it. Each run has an empty database of its own; the kinds of run alternate, so that noise meets all of
them. Every purchase is a sold one: the dearest case. Written to bench/results/writer.md.
"""

import argparse
import asyncio
import os
import resource
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg
from rich.console import Console
from rich.progress import Progress

from order_writer.postgres.migrate import migrate
from order_writer.saga.decision_batch import Batch, entry_of
from order_writer.unit_of_work import columns
from stampede_schemas.decisions import AnyDecision, Reserved
from stampede_schemas.identifiers import BuyerId, ProductId, PurchaseId
from stampede_schemas.topics import PARTITIONS
from tests.chaos.results import machine
from tests.support.builders.orders import DecisionsLog, listed, new_topics
from tests.support.processes.stack import components

ORDERS = 60_000
ROUNDS = 3
PER_RECORD = 50
BARE_ROWS_PER_TRANSACTION = 1_000
LOOK_EVERY_S = 0.02
RUN_S_MAX = 120.0
WANTED_PER_S, WANTED_RATIO = 15_000, 0.6
RESULTS = Path(__file__).parent / "results" / "writer.md"
# The same columns from the same kind of arrays, and nothing else: no conflicts, no hold's end, no progress, no payment.
BARE = """
INSERT INTO purchases (purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor,
  currency, payment_method, fingerprint, partition, source_offset, source_index, hold_until, trace_id, traceparent,
  version)
SELECT a, b, c, d, e, f, g, h, i, j, k, l, m, n, now() + o * interval '1 millisecond', p, q, 1
FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
            $9::text[], $10::text[], $11::text[], $12::int[], $13::bigint[], $14::int[], $15::bigint[], $16::text[],
            $17::text[]) AS r (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)"""
KINDS = ("bare", "none", "simulated")


Values = tuple[object, ...]  # of a row, without its version


class Run(NamedTuple):
    """One run: rows a second until all are stored, purchases a second until all are paid and told, client CPU."""

    rows_per_s: float
    ended_per_s: float
    cpu_us_per_row: float


def sold(number: int, orders: int) -> Reserved:
    """A purchase of one unit, with ids as long and as scattered as real ones."""
    partition = number % PARTITIONS
    return Reserved(
        purchase_id=PurchaseId(f"97ee-{secrets.token_hex(16)}"),
        buyer_id=BuyerId(f"b{(number * 2_654_435_761) % orders:08x}-1111-2222-3333-444455556666"),
        product_id=ProductId(f"shoe-{partition}"),
        quantity=1,
        payment_method="ok",
        fingerprint=secrets.token_hex(11),
        available_after=10**6 - number,
        reservation_no=number // PARTITIONS + 1,
        unit_price_minor=4_200,
        currency="EUR",
        hold_ms=600_000,
    )


def prefill(kafka: str, orders: int) -> list[list[Values]]:
    """Write the log; the same purchases as rows, in portions for the bare loop."""
    new_topics(kafka)
    log = DecisionsLog(kafka)
    everything = Batch()
    for partition in range(PARTITIONS):
        sales: list[AnyDecision] = [sold(number, orders) for number in range(partition, orders, PARTITIONS)]
        records = [sales[at : at + PER_RECORD] for at in range(0, len(sales), PER_RECORD)]
        offsets = log.append(partition, [listed(f"shoe-{partition}", 10**6)], *records)
        for offset, decisions in zip(offsets[1:], records, strict=True):
            everything.add(partition, offset, decisions)
    rows = [entry_of(row).values()[:-1] for row in everything.rows.values()]
    size = BARE_ROWS_PER_TRANSACTION
    return [rows[at : at + size] for at in range(0, len(rows), size)]


@asynccontextmanager
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """The DSN of a migrated database, gone afterwards; what the last one left to write is written before."""
    name = f"bench_{secrets.token_hex(4)}"
    server = await asyncpg.connect(postgres)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        dsn = f"{postgres.rpartition('/')[0]}/{name}"
        await migrate(dsn)
        await server.execute("CHECKPOINT")
        yield dsn
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


async def bare(dsn: str, portions: list[list[Values]]) -> Run:
    """One connection, one transaction a portion."""
    connection = await asyncpg.connect(dsn)
    began, cpu = time.perf_counter(), time.process_time()
    for portion in portions:
        await connection.execute(BARE, *columns(portion, len(portion[0])))
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    await connection.close()
    rows = sum(map(len, portions))
    return Run(rows / took, rows / took, cpu / rows * 1e6)


async def writer(dsn: str, kafka: str, payment: str, rows: int) -> Run:
    """One order-writer process from the log's beginning; the clock starts with the first rows that are seen."""
    env = {
        "STAMPEDE_KAFKA": kafka,
        "STAMPEDE_POSTGRES": dsn,
        "STAMPEDE_PAYMENT": payment,
        "STAMPEDE_GROUP": f"bench-{secrets.token_hex(4)}",
        "STAMPEDE_SESSION_TIMEOUT_S": "6",
        "STAMPEDE_LOG_LEVEL": "WARNING",
    }
    connection = await asyncpg.connect(dsn)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, "-m", "order_writer"], env=os.environ | env)  # noqa: ASYNC220
    try:
        # Offsets are rows here: each partition's first record lists its product, each other one sells PER_RECORD.
        applied = "SELECT coalesce(sum(greatest(next_offset - 1, 0)), 0)::bigint FROM progress"
        first = await _reach(connection, process, f"SELECT ({applied}) > 0")
        already = PER_RECORD * await connection.fetchval(applied)
        stored = await _reach(connection, process, f"SELECT ({applied}) >= {-(-rows // PER_RECORD)}")
        sent = "SELECT NOT EXISTS (SELECT FROM outbox)"
        paid = "NOT EXISTS (SELECT FROM payments WHERE state IN ('due', 'unknown', 'void_due'))"
        ended = await _reach(connection, process, f"{sent} AND {paid}")
        counted = await connection.fetchval("SELECT count(*) FROM purchases WHERE status = 'confirmed'")
        assert counted == rows, f"{counted:,} of {rows:,} confirmed"
    finally:
        process.terminate()
        process.wait()
        await connection.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run((rows - already) / (stored - first), (rows - already) / (ended - first), cpu / rows * 1e6)


async def _reach(connection: asyncpg.Connection, process: "subprocess.Popen[bytes]", condition: str) -> float:
    deadline = time.perf_counter() + RUN_S_MAX
    while not await connection.fetchval(condition):
        assert process.poll() is None, "the order-writer ended: its own words are above"
        assert time.perf_counter() < deadline, f"not within {RUN_S_MAX:.0f} s: {condition}"
        await asyncio.sleep(LOOK_EVERY_S)
    return time.perf_counter()


async def measure(kafka: str, postgres: str, orders: int, rounds: int, bar: Progress) -> dict[str, list[Run]]:
    """All runs by kind."""
    task = bar.add_task("filling the log", total=rounds * len(KINDS))
    portions = await asyncio.to_thread(prefill, kafka, orders)
    found: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    for kind in KINDS * rounds:
        bar.update(task, description=f"{orders:,} orders, {kind}")
        async with empty_database(postgres) as dsn:
            run = await (bare(dsn, portions) if kind == "bare" else writer(dsn, kafka, kind, orders))
        found[kind].append(run)
        bar.advance(task)
    return found


def report(found: dict[str, list[Run]], orders: int, command: str) -> str:
    """The table as Markdown, with where it comes from."""
    base = statistics.median(run.rows_per_s for run in found["bare"])
    names = {
        "bare": f"bare `INSERT … SELECT unnest`, {BARE_ROWS_PER_TRANSACTION:,} rows a transaction, nothing else",
        "none": "one order-writer, payment `none`: confirmed at insert, with its event in the outbox",
        "simulated": "one order-writer, payment `simulated`: reserved, with its payment due",
    }
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"{machine()}; broker and database on the same cores, load {os.getloadavg()[2]:.1f} before",
        "",
        f"    {command}",
        "",
        f"{len(found['bare'])} runs of {orders:,} orders each, in turn; median (least to most).",
        "",
        "| what | rows/s | of bare | client CPU-µs per order | until all are paid and told: orders/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, runs in found.items():
        rates = sorted(run.rows_per_s for run in runs)
        ended = "" if kind == "bare" else f"{statistics.median(run.ended_per_s for run in runs):,.0f}"
        lines.append(
            f"| {names[kind]} | {statistics.median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f}) "
            f"| {statistics.median(rates) / base:.0%} "
            f"| {statistics.median(run.cpu_us_per_row for run in runs):.0f} | {ended} |"
        )
    slowest = min(statistics.median(run.rows_per_s for run in found[kind]) for kind in KINDS[1:])
    held = "holds" if slowest >= max(WANTED_PER_S, WANTED_RATIO * base) else "does not hold here"
    lines += ["", f"Claim (≥ {WANTED_RATIO:.0%} of bare and ≥ {WANTED_PER_S:,} orders/s): {held}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it, print the table and put it on top of those before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--keep", action="store_true", help="write the table down in bench/results/writer.md")
    asked = parser.parse_args()
    console = Console()
    with components() as running, Progress(console=console) as bar:
        found = asyncio.run(measure(running.kafka, running.postgres, asked.orders, asked.rounds, bar))
    text = report(found, asked.orders, f"make bench-writer ORDERS={asked.orders} ROUNDS={asked.rounds}")
    console.print(text)
    if asked.keep:
        title, _, before = RESULTS.read_text().partition("\n") if RESULTS.exists() else ("# One order-writer", "", "")
        RESULTS.write_text(f"{title}\n\n{text}{before}")


if __name__ == "__main__":
    main()
