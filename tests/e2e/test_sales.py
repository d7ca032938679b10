"""Whole sales over HTTP on the real stack: exactly the stock is sold, everyone is told so, whatever dies meanwhile."""

import asyncio
import random
import urllib.request
from dataclasses import dataclass

import pytest

from devstack.crowd import Crowd, Journal, Sale
from devstack.proof import Proof, prove
from stampede_schemas.topics import PARTITIONS
from tests.support.stack import LocalStack, eventually


async def sell(running: LocalStack, sale: Sale) -> tuple[Journal, Proof]:
    """Run a sale and look at what log, database and tables say of it."""
    journal = await Crowd(running.endpoints, sale).run()
    return journal, await prove(running.endpoints, journal)


def check(journal: Journal, proof: Proof) -> None:
    """Every unit is sold exactly once, all records agree, and everybody has an answer."""
    assert proof.wrong == []
    assert proof.confirmed == journal.sale.units == journal.count("confirmed")
    last = {attempt.buyer: attempt for attempt in journal.attempts}
    assert len(last) == journal.sale.buyers
    assert {attempt.outcome for attempt in last.values()} <= {"confirmed", "rejected", "sold_out", "released"}


@pytest.mark.parametrize(("buyers", "units"), [(100, 10), (1_000, 100), (500, 100), (20, 10)])
async def test_exactly_the_stock_is_sold(whole: LocalStack, buyers: int, units: int) -> None:
    """The four classic scenarios: that many confirmed, every other buyer told that it is sold out."""
    journal, proof = await sell(whole, Sale(units=units, buyers=buyers, duplicates_share=0.05))
    check(journal, proof)
    turned_away = {attempt.buyer for attempt in journal.attempts if attempt.outcome in {"rejected", "sold_out"}}
    assert len(turned_away) == buyers - units


async def test_declined_units_are_sold_to_someone_else(whole: LocalStack) -> None:
    """With a third of the payments declined every unit still finds a buyer who pays."""
    journal, proof = await sell(whole, Sale(units=40, buyers=300, declined_share=0.33))
    check(journal, proof)
    assert proof.log.released
    assert set(proof.log.released.values()) == {"payment_declined"}


@dataclass(frozen=True)
class Killer:
    """Kills processes at random moments of a sale, by a seed."""

    running: LocalStack
    seed: int
    victims: tuple[str, ...]

    async def run(self) -> list[str]:
        """Kill each victim once."""
        chance = random.Random(self.seed)
        killed = []
        for victim in chance.sample(self.victims, len(self.victims)):
            await asyncio.sleep(chance.uniform(0.1, 0.9))
            await asyncio.to_thread(self.running.kill, victim)
            killed.append(victim)
        return killed


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_kill_9_in_the_middle_of_a_sale_changes_nothing(whole: LocalStack, seed: int) -> None:
    """The inventory and the order-writer die during the sale; the sale ends as if they had not."""
    sale = Sale(units=300, buyers=2_000, declined_share=0.1, duplicates_share=0.05, seed=seed)
    killer = asyncio.create_task(Killer(whole, seed, ("inventory-0", "order-writer-0")).run())
    journal, proof = await sell(whole, sale)
    assert len(await killer) == 2
    check(journal, await prove(whole.endpoints, journal) if proof.wrong else proof)


async def test_two_inventory_workers_share_the_partitions(whole: LocalStack) -> None:
    """Scaled to two workers, each owns some partitions; sales on both, and a kill of one of them, end well."""
    await asyncio.to_thread(whole.scale, inventory=2)
    try:
        sales = [Sale(units=20, buyers=100, declined_share=0.1) for _ in range(6)]
        killer = asyncio.create_task(Killer(whole, 4, ("inventory-1",)).run())
        for journal, proof in await asyncio.gather(*(sell(whole, sale) for sale in sales)):
            check(journal, proof)
        assert await killer == ["inventory-1"]
    finally:
        await asyncio.to_thread(whole.scale, inventory=1)
        await asyncio.to_thread(eventually, lambda: owns_all(whole), 30, "the partitions of the worker that left")


def owns_all(running: LocalStack) -> bool:
    """Whether the first worker answers for every partition: those of a static member that left take its session."""
    (worker,) = running.endpoints.processes["inventory"]
    try:
        for partition in range(PARTITIONS):
            with urllib.request.urlopen(f"{worker['ops']}/state?partition={partition}", timeout=5):  # noqa: S310
                pass
    except OSError:
        return False
    return True
