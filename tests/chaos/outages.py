"""Minutes without Postgres while decisions go on: `python -m tests.chaos.outages --minutes 5 --per-second 1000`.

One order-writer process, a real broker and a real database; between writer and database a proxy that refuses, or falls
silent, or a session that locks the table. Exit code 1 if something was released, dead-lettered, lost or written twice,
if the writer's memory grew, or if the backlog took longer than a minute once Postgres was back. Appended to
bench/results/outages.md with --keep. Bounded in time and count, loopback only.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import asyncpg
import psutil
from rich.console import Console
from rich.progress import Progress

from stampede_schemas.decisions import AnyDecision
from stampede_schemas.topics import DEAD_LETTERS, PARTITIONS
from tests.chaos.results import FOLDER, machine
from tests.support.builders.orders import Installation, installation, listed, reserved, until
from tests.support.faults.proxy import Proxy, proxy
from tests.support.processes.stack import components

PER_RECORD = 25
STEP_S = 0.25
DRAIN_S_MAX, GROWTH_MIB_MAX = 60.0, 64.0
START_S, END_S = 60.0, 900.0
FAULTS = ("gone", "silent", "locked")


class Found(NamedTuple):
    """What a run came to. `paid_s`: until all were confirmed and told, from when Postgres was back."""

    fault: str
    away_s: float
    sold: int
    stored_s: float
    paid_s: float
    growth_mib: float
    wrong: list[str]


class Sale:
    """Sells for ever, a unit a purchase, to the partitions in turn."""

    def __init__(self, place: Installation) -> None:
        self._place, self.sold, self._turn = place, 0, 0
        for partition in range(PARTITIONS):
            place.log.append(partition, [listed(f"shoe-{partition}", 10**7)])

    def sell(self, count: int) -> None:
        """In records of 25."""
        for _ in range(-(-count // PER_RECORD)):
            partition, self._turn = self._turn % PARTITIONS, self._turn + 1
            numbers = range(self.sold + 1, self.sold + PER_RECORD + 1)
            decisions: list[AnyDecision] = [
                reserved(f"p{n}", n, product_id=f"shoe-{partition}", hold_ms=3_600_000) for n in numbers
            ]
            self._place.log.append(partition, decisions)
            self.sold += PER_RECORD


async def paced(sale: Sale, seconds: float, per_second: int, look: Callable[[], None]) -> None:
    """Sell so long at this rate."""
    began, before = time.monotonic(), sale.sold
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * per_second) - (sale.sold - before)
        if due > 0:
            await asyncio.to_thread(sale.sell, due)
        look()
        await asyncio.sleep(STEP_S)


@asynccontextmanager
async def away(fault: str, between: Proxy, place: Installation) -> AsyncIterator[None]:
    """Without Postgres, in one way or another."""
    if fault == "locked":
        other = await asyncpg.connect(place.postgres)
        try:
            async with other.transaction():
                await other.execute("LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE")
                yield
        finally:
            await other.close()
        return
    (between.refuse if fault == "gone" else between.stall)()
    try:
        yield
    finally:
        between.heal()


async def run(place: Installation, between: Proxy, fault: str, seconds: float, per_second: int, bar: Progress) -> Found:
    """One outage."""
    front, _, database = place.postgres.rpartition("/")
    env = {
        "STAMPEDE_KAFKA": place.kafka,
        "STAMPEDE_POSTGRES": f"{front.rpartition(':')[0]}:{between.port}/{database}",
        "STAMPEDE_LOG_LEVEL": "ERROR",
    }
    sale = Sale(place)
    process = subprocess.Popen([sys.executable, "-m", "order_writer"], env=os.environ | env)  # noqa: ASYNC220
    memory = psutil.Process(process.pid).memory_info
    try:
        await paced(sale, 5, per_second, lambda: None)
        await until(partial(at_rest, place, sale), "running", START_S)
        start, most = memory().rss, [0]
        task = bar.add_task(f"{fault}: {seconds:.0f} s without Postgres, {per_second:,}/s", total=seconds)
        began = time.monotonic()

        def look() -> None:
            most[0] = max(most[0], memory().rss - start)
            bar.update(task, completed=time.monotonic() - began)

        async with away(fault, between, place):
            await paced(sale, seconds, per_second, look)
        back = time.monotonic()
        await until(partial(stored, place, sale), "the backlog is stored", END_S)
        stored_s = time.monotonic() - back
        await until(partial(at_rest, place, sale), "all are paid and told", END_S)
        paid_s = time.monotonic() - back
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    growth = most[0] / 2**20
    return Found(fault, seconds, sale.sold, stored_s, paid_s, growth, await wrong(place, sale, stored_s, growth))


async def stored(place: Installation, sale: Sale) -> bool:
    """Whether every sold purchase has a row."""
    return await place.value("SELECT count(*) FROM purchases") == sale.sold


async def at_rest(place: Installation, sale: Sale) -> bool:
    """Whether every sold purchase is confirmed and told."""
    confirmed = "SELECT count(*) FROM purchases WHERE status = 'confirmed'"
    return (await place.value(confirmed), await place.value("SELECT count(*) FROM outbox")) == (sale.sold, 0)


async def wrong(place: Installation, sale: Sale, stored_s: float, growth_mib: float) -> list[str]:
    """What must not be."""
    events = await asyncio.to_thread(place.events)
    found = []
    if stored_s > DRAIN_S_MAX:
        found.append(f"the backlog took {stored_s:.0f} s")
    if growth_mib > GROWTH_MIB_MAX:
        found.append(f"the writer grew by {growth_mib:.0f} MiB")
    if count := len(await asyncio.to_thread(place.requests)):
        found.append(f"{count} releases")
    if count := len(await asyncio.to_thread(place.values, DEAD_LETTERS.name)):
        found.append(f"{count} dead letters")
    if {(event.purchase_id, event.version) for event in events} != {(f"p{n}", 3) for n in range(1, sale.sold + 1)}:
        found.append("orders told are not those sold")
    if count := int(str(await place.value("SELECT count(*) FROM purchases WHERE version <> 3"))):
        found.append(f"{count} rows changed twice")
    return found


def report(found: list[Found], command: str) -> str:
    """Markdown."""
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"{machine()}, load {os.getloadavg()[2]:.1f}",
        "",
        f"    {command}",
        "",
        "| Postgres | away s | sold in all | stored s after | paid and told s after | writer grew by MiB | wrong |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {one.fault} | {one.away_s:.0f} | {one.sold:,} | {one.stored_s:.0f} | {one.paid_s:.0f} "
        f"| {one.growth_mib:.0f} | {'; '.join(one.wrong) or 'nothing'} |"
        for one in found
    ]
    return "\n".join(lines) + "\n"


async def all_of(faults: list[str], kafka: str, postgres: str, seconds: float, rate: int, bar: Progress) -> list[Found]:
    """One fault after the other, each on topics and tables of its own."""
    found = []
    for fault in faults:
        async with installation(kafka, postgres) as place:
            with proxy(int(postgres.rpartition(":")[2].partition("/")[0])) as between:
                found.append(await run(place, between, fault, seconds, rate, bar))
    return found


def main() -> int:
    """0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--per-second", type=int, default=1_000)
    parser.add_argument(
        "--fault", choices=FAULTS, action="append", help="gone (as it is), silent or locked; repeatable"
    )
    parser.add_argument("--keep", action="store_true", help="write it down in bench/results/outages.md")
    asked = parser.parse_args()
    faults, console = asked.fault or ["gone"], Console()
    with components() as running, Progress(console=console) as bar:
        found = asyncio.run(all_of(faults, running.kafka, running.postgres, asked.minutes * 60, asked.per_second, bar))
    options = " ".join(f"--fault {fault}" for fault in faults)
    command = f"python -m tests.chaos.outages --minutes {asked.minutes:g} --per-second {asked.per_second} {options}"
    text = report(found, command)
    console.print(text)
    if asked.keep:
        kept = FOLDER / "outages.md"
        before = kept.read_text() if kept.exists() else "# Minutes without Postgres\n"
        kept.write_text(f"{before}\n{text}")
    return int(any(one.wrong for one in found))


if __name__ == "__main__":
    sys.exit(main())
