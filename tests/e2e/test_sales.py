"""Whole sales over HTTP on the real stack: exactly the stock is sold, everyone is told so, whatever dies meanwhile."""

import asyncio
import random
import signal
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

import pytest

from devstack.load_generator import LoadGenerator, Sale
from devstack.proof import Proof, prove
from replay.journal import Journal
from stampede_schemas.topics import PARTITIONS, partition_of
from tests.support.processes.stack import LocalStack, eventually

SOLD_S_MAX = 120.0


async def sell(running: LocalStack, sale: Sale) -> tuple[Journal, Proof]:
    """Run a sale and look at what log, database and tables say of it."""
    journal = await LoadGenerator(running.endpoints, sale).run()
    return journal, await prove(running.layout.endpoints, journal)


def check(sale: Sale, journal: Journal, proof: Proof) -> None:
    """Every unit is sold exactly once, all records agree, and everybody has an answer."""
    assert proof.wrong == []
    assert proof.confirmed == sale.units == journal.count("confirmed")
    last = {attempt.buyer: attempt for attempt in journal.attempts}
    assert len(last) == sale.buyers
    assert {attempt.outcome for attempt in last.values()} <= {"confirmed", "rejected", "sold_out", "released"}


@pytest.mark.parametrize(("buyers", "units"), [(100, 10), (1_000, 100), (500, 100), (20, 10)])
async def test_exactly_the_stock_is_sold(whole: LocalStack, buyers: int, units: int) -> None:
    """The four classic scenarios: that many confirmed, every other buyer told that it is sold out."""
    sale = Sale(units=units, buyers=buyers, duplicates_share=0.05)
    journal, proof = await sell(whole, sale)
    check(sale, journal, proof)
    turned_away = {attempt.buyer for attempt in journal.attempts if attempt.outcome in {"rejected", "sold_out"}}
    assert len(turned_away) == buyers - units


async def test_declined_units_are_sold_to_someone_else(whole: LocalStack) -> None:
    """With a third of the payments declined every unit still finds a buyer who pays."""
    sale = Sale(units=40, buyers=300, declined_share=0.33)
    journal, proof = await sell(whole, sale)
    check(sale, journal, proof)
    assert proof.released
    assert set(proof.released.values()) == {"payment_declined"}


@dataclass(frozen=True)
class Killer:
    """Kills processes, each when a share of the units is sold that is drawn by a seed."""

    running: LocalStack
    seed: int
    victims: tuple[str, ...]

    async def run(self, loads: Sequence[LoadGenerator]) -> None:
        """Kill each victim once."""
        chance = random.Random(self.seed)
        units = sum(load.sale.units for load in loads)
        wanted = sorted(chance.uniform(0.1, 0.6) for _ in self.victims)
        for victim, share in zip(chance.sample(self.victims, len(self.victims)), wanted, strict=True):
            await asyncio.to_thread(eventually, partial(enough, loads, share * units), SOLD_S_MAX, "enough sold")
            await asyncio.to_thread(self.running.kill, victim)


def enough(loads: Sequence[LoadGenerator], units: float) -> bool:
    """Whether so many units are sold by now."""
    return sum(load.journal.sold for load in loads) >= units


async def sell_beside(killer: Killer, sales: Sequence[Sale]) -> list[LoadGenerator]:
    """Run sales at once while the killer is about: however late it strikes, each sale has buyers."""
    endpoints, killed = killer.running.endpoints, asyncio.Event()
    loads = [LoadGenerator(endpoints, sale) for sale in sales]

    async def kill() -> None:
        try:
            await killer.run(loads)
        finally:
            killed.set()

    async def sale_after_sale(load: LoadGenerator) -> list[LoadGenerator]:
        done = [load]
        await load.run()
        while not killed.is_set():
            product_id = product_in(partition_of(load.sale.product_id))
            done.append(LoadGenerator(endpoints, replace(load.sale, units=20, buyers=60, product_id=product_id)))
            await done[-1].run()
        return done

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        selling = [group.create_task(sale_after_sale(load)) for load in loads]
    return [load for sold in selling for load in sold.result()]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_kill_9_in_the_middle_of_a_sale_changes_nothing(whole: LocalStack, seed: int) -> None:
    """The inventory and the order-writer die during the sale; the sale ends as if they had not."""
    sale = Sale(
        units=300, buyers=600, declined_share=0.1, duplicates_share=0.05, arrivals_per_s=100, patience_s=120, seed=seed
    )
    for load in await sell_beside(Killer(whole, seed, ("inventory-0", "order-writer-0")), [sale]):
        check(load.sale, load.journal, await prove(whole.layout.endpoints, load.journal))


async def test_a_redis_that_stands_still_in_a_sale_changes_nothing(whole: LocalStack) -> None:
    """The gateway limits by its own share meanwhile, and every buyer is told how the purchase ended.

    A row that was read before the order's end, and came after it, was once shown for ever: reserved.
    """
    load = LoadGenerator(whole.endpoints, Sale(units=200, buyers=400, declined_share=0.1, arrivals_per_s=100))
    await asyncio.to_thread(whole.kill, "redis", signal.SIGSTOP)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            await asyncio.to_thread(eventually, partial(enough, [load], 100), SOLD_S_MAX, "enough sold")
            await asyncio.to_thread(whole.kill, "redis", signal.SIGCONT)
    finally:
        await asyncio.to_thread(whole.kill, "redis", signal.SIGCONT)
    check(load.sale, load.journal, await prove(whole.layout.endpoints, load.journal))


async def test_two_inventory_workers_share_the_partitions(whole: LocalStack) -> None:
    """Scaled to two workers, each owns some partitions; sales on both, and a kill of one of them, end well."""
    await asyncio.to_thread(whole.scale, inventory=2)
    try:
        await asyncio.to_thread(eventually, lambda: shared(shares(whole)), 30, "all partitions, some of each worker")
        sold_at = [share[n % len(share)] for share in shares(whole) for n in range(3)]
        paced = Sale(units=20, buyers=100, declined_share=0.1, arrivals_per_s=15, patience_s=120)
        sales = [replace(paced, product_id=product_in(number)) for number in sold_at]
        for load in await sell_beside(Killer(whole, 4, ("inventory-1",)), sales):
            check(load.sale, load.journal, await prove(whole.layout.endpoints, load.journal))
    finally:
        await asyncio.to_thread(whole.scale, inventory=1)
        await asyncio.to_thread(eventually, lambda: owns_all(whole), 30, "the partitions of the worker that left")


def product_in(partition: int) -> str:
    """A product nobody used before, in this partition."""
    return next(name for name in iter(lambda: f"tea-{uuid4().hex[:10]}", "") if partition_of(name) == partition)


def shares(running: LocalStack) -> list[list[int]]:
    """Which partitions each inventory worker answers for."""
    workers = running.endpoints.processes["inventory"]
    return [[number for number in range(PARTITIONS) if owns(worker["ops"], number)] for worker in workers]


def shared(found: list[list[int]]) -> bool:
    """Whether each worker has partitions and each partition has a worker."""
    return all(found) and sorted(number for share in found for number in share) == list(range(PARTITIONS))


def owns_all(running: LocalStack) -> bool:
    """Whether the first worker answers for every partition: those of a static member that left take its session."""
    return shares(running) == [list(range(PARTITIONS))]


def owns(ops: str, partition: int) -> bool:
    """Whether the worker with this ops listener answers for the partition."""
    try:
        with urllib.request.urlopen(f"{ops}/state?partition={partition}", timeout=5):  # noqa: S310
            return True
    except OSError:
        return False
