"""How long each list of orders takes among 5,000,000: first pages, pages from the middle, one connection.

`make bench-read-side` fills a database of its own (some minutes; 2.5 GB under .stack, removed at the end) and writes
bench/results/read_side.md. Each list is asked on one connection often enough for the server to settle on a plan.
"""

import argparse
import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.progress import Progress

from gateway.read_side.order_queries import After, orders
from order_writer.postgres.migrate import migrate
from tests.chaos.results import machine
from tests.support.builders.order_book import LISTS, fill, touched
from tests.support.processes.stack import components

PORTION = 100_000
TIMES = 200
PAGE = 51
P99_MS_MAX = 50.0
RESULTS = Path(__file__).parent / "results" / "read_side.md"


async def make(dsn: str, rows: int, bar: Progress) -> asyncpg.Connection:
    """The book, vacuumed and analysed as autovacuum would in time."""
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    task = bar.add_task(f"making {rows:,} orders", total=rows)
    for first in range(1, rows + 1, PORTION):
        await fill(connection, first, min(first + PORTION - 1, rows))
        bar.advance(task, PORTION)
    bar.update(task, description="VACUUM ANALYZE")
    await connection.execute("VACUUM ANALYZE purchases", timeout=600)
    return connection


async def measure(connection: asyncpg.Connection, rows: int, bar: Progress) -> list[str]:
    """A line of the table for each list."""
    lines = []
    task = bar.add_task("asking", total=len(LISTS))
    for name, filters in LISTS.items():
        bar.update(task, description=name)
        took_ms, most = [], 0
        for number in range(TIMES):
            # The first page, then pages that begin all over the book.
            at = await connection.fetchval(
                "SELECT timestamptz '2026-01-01' + $1::bigint / 1000 * interval '50 ms'", rows - rows * number // TIMES
            )
            query = orders(PAGE, After(at, "97ee-8") if number else None, **filters)  # type: ignore[arg-type]
            began = time.perf_counter()
            await connection.fetch(query.text, *query.arguments)
            took_ms.append((time.perf_counter() - began) * 1e3)
            if number % 50 == 0:
                most = max(most, (await touched(connection, query)).blocks)
        took_ms.sort()
        lines.append(f"| {name} | {took_ms[TIMES // 2]:.1f} | {took_ms[TIMES * 99 // 100]:.1f} | {most} |")
        bar.advance(task)
    return lines


async def run(dsn: str, rows: int, bar: Progress) -> list[str]:
    """Make the book and ask."""
    connection = await make(dsn, rows, bar)
    try:
        return await measure(connection, rows, bar)
    finally:
        await connection.close()


def main() -> int:
    """Run it and print the table; 1 when a list took longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--keep", action="store_true", help="write the table down in bench/results/read_side.md")
    asked = parser.parse_args()
    console = Console()
    with components() as running, Progress(console=console) as bar:
        lines = asyncio.run(run(running.postgres, asked.rows, bar))
    slow = [line for line in lines if float(line.split("|")[3]) > P99_MS_MAX]
    text = "\n".join(
        [
            "# Lists of orders",
            "",
            f"{asked.rows:,} orders, pages of {PAGE - 1} and one; {TIMES} pages of each list, from all over it, on one "
            f"connection. {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}.",
            "",
            f"    make bench-read-side ROWS={asked.rows}",
            "",
            "| list | p50 ms | p99 ms | 8 KiB blocks looked at, most |",
            "|---|---:|---:|---:|",
            *lines,
            "",
            f"Claim (each p99 at most {P99_MS_MAX:.0f} ms): {'does not hold here' if slow else 'holds'}.",
            "",
        ]
    )
    console.print(text)
    if asked.keep:
        RESULTS.write_text(text)
    return int(bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
