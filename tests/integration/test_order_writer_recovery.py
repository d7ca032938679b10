"""Postgres restored from an older copy, or lost whole, while the log went on: refused, recovered, true in the end."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest

from eventlog.kafka import producer
from eventlog.reader import LogBroken
from order_writer.outbox.messages import Outgoing, encode_outbox
from order_writer.payments.provider import Approved, Declined, Unknown, Verdict, Voided
from order_writer.postgres.migrate import migrate
from order_writer.saga.orders import Order
from replay import live
from replay.rules import s05_every_hold_ends, s06_released_once, s07_no_invented_orders
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import DECISIONS, ORDER_COMMANDS, ORDERS, Topic
from tests.support.orders import Installation, listed, rejected, released, reserved, until
from tests.support.stack import LocalStack

RULES = (s05_every_hold_ends, s06_released_once, s07_no_invented_orders)


class Bank:
    """A provider with a memory of its own: idempotent by purchase, a void is for ever. `unknown` thinks for long."""

    def __init__(self) -> None:
        self.captured: Counter[str] = Counter()
        self.voided: set[str] = set()
        self.thinking = True

    async def authorize(self, order: Order) -> Verdict:
        """By payment method."""
        if order.purchase_id in self.voided or order.payment_method == "declined":
            return Declined("no")
        if order.payment_method == "unknown" and self.thinking:
            return Unknown()
        self.captured[order.purchase_id] = 1
        return Approved()

    query = authorize

    async def void(self, purchase_id: PurchaseId, *, captured: bool) -> Voided:
        """Give back what was captured."""
        del captured
        self.voided.add(purchase_id)
        self.captured.pop(purchase_id, None)
        return Voided()


class Sale:
    """A sale on one partition whose stock keeper is played by the test."""

    def __init__(self, place: Installation) -> None:
        self.place, self.number, self.answered = place, 0, set[str]()

    def reserve(self, *names: str, method: str = "ok") -> None:
        """Each in a record of its own."""
        for name in names:
            self.number += 1
            self.place.log.append(3, [reserved(name, self.number, method=method)])

    def take_back(self) -> None:
        """Answer what was asked to be released, each reservation once."""
        for _, asked in self.place.requests():
            if isinstance(asked, ReleaseRequested) and asked.purchase_id not in self.answered:
                self.answered.add(asked.purchase_id)
                self.place.log.append(3, [released(asked.purchase_id, asked.reservation, reason=asked.reason)])

    async def ended(self) -> bool:
        """Whether nothing is open: no hold, no message, no refund, no unit on its way back."""
        await asyncio.to_thread(self.take_back)
        [found] = await self.place.rows(
            "SELECT (SELECT count(*) FROM purchases WHERE status = 'reserved' AND payment_method <> 'unknown'"
            " OR status = 'released' AND stock_returned_at IS NULL OR refund = 'due') AS open,"
            " (SELECT count(*) FROM outbox) AS outbox,"
            " (SELECT next_offset FROM progress WHERE partition = 3) AS reached"
        )
        return (found["open"], found["outbox"], found["reached"]) == (0, 0, self.place.log.sources[3])


async def recover(place: Installation) -> str:
    """The command, as an operator runs it."""
    where = {"STAMPEDE_KAFKA": place.kafka, "STAMPEDE_POSTGRES": place.postgres}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "order_writer", "recover", env=os.environ | where,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said.decode()


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    """The writer ends for this reason alone, whichever of its loops met it first."""
    with pytest.raises(LogBroken, match=sentence):
        yield


def judge(place: Installation) -> None:
    """S5, S6, S7 by the checker's own eyes."""
    database = live.database(place.postgres)
    evidence = live.log(place.kafka)
    evidence.database = database
    assert [violation for rule in RULES for violation in rule.check(evidence)] == []


def versions_rise(place: Installation) -> None:
    """No version of an order is published twice, none after a higher one."""
    published: dict[str, list[int]] = {}
    for event in place.events():
        published.setdefault(event.purchase_id, []).append(event.version)
    assert published
    assert all(before < after for versions in published.values() for before, after in pairwise(versions)), published


async def test_an_older_database_is_refused_recovered_and_true_again(
    place: Installation, quiet_servers: LocalStack
) -> None:
    """A backup; the sale goes on; the copy takes the place of the database under the running writer: it stops, the
    next one refuses, and after `recover` every order ends as it was published, paid once, and no version repeats."""
    sale, bank = Sale(place), Bank()
    server = Installation(place.kafka, quiet_servers.postgres, place.log)
    name = place.postgres.rpartition("/")[2]
    place.log.append(3, [listed(stock=1_000)])
    sale.reserve("early", "cancelled later")
    sale.reserve("declined early", method="declined")
    sale.reserve("held", method="unknown")
    async with place.writer(provider=bank) as task:
        await until(sale.ended, "the first part", task=task)
    await server.rows(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    # As if it had been taken a moment before its messages were sent, and long ago.
    copied = Installation(place.kafka, f"{place.postgres}_copy", place.log)
    messages = [
        Outgoing(ORDERS.name, event.partition() or 0, None, event.value() or b"", [])
        for event in place.records(ORDERS.name)
    ]
    await copied.rows("INSERT INTO outbox (messages) VALUES ($1)", encode_outbox(messages))
    await copied.rows(
        "UPDATE purchases SET hold_until = hold_until - interval '1 day', created_at = created_at - interval '1 day'"
    )
    with refused("older database was restored.*recover"):
        async with place.writer(provider=bank) as task:
            bank.thinking = False
            sale.reserve("late", "late and cancelled")
            sale.reserve("declined late", method="declined")
            place.log.append(3, [rejected("too late")])
            for who in ("cancelled later", "late and cancelled"):
                await until(partial(sold, place, who), f"{who} is sold", task=task)
                command = CancelRequested(
                    request_id=RequestId(who.replace(" ", "-")), purchase_id=PurchaseId(who), actor=f"buyer-of-{who}"
                )
                await asyncio.to_thread(place.command, command)
            await until(lambda: sold(place, "held"), "the held one is paid", task=task)
            await until(sale.ended, "the second part", task=task)
            before = await place.statuses()
            await server.rows(f"DROP DATABASE {name} WITH (FORCE)")
            await server.rows(f"ALTER DATABASE {name}_copy RENAME TO {name}")
            async with asyncio.timeout(60):
                await asyncio.shield(task)
    copy = await place.rows("SELECT * FROM purchases ORDER BY 1")
    assert len(copy) == 4
    with refused("older database was restored"):
        async with place.writer(provider=bank) as task:
            await task
    assert await place.rows("SELECT * FROM purchases ORDER BY 1") == copy
    captured = dict(bank.captured)
    said = await recover(place)
    assert "2 rows were older" in said
    assert f"{len(messages)} messages of the copy had been sent" in said
    anew = "SELECT hold_until > now() + interval '50 seconds' FROM purchases WHERE purchase_id = 'held'"
    assert await place.value(anew) is True
    async with place.writer(provider=bank) as task:
        await until(lambda: sold(place, "held"), "the held one is paid again", task=task)
        await until(sale.ended, "everything again", task=task)
    assert await place.statuses() == before
    assert dict(bank.captured) == captured
    assert sorted(captured) == sorted(p for p, status in before.items() if status == "confirmed")
    await asyncio.to_thread(versions_rise, place)
    await asyncio.to_thread(judge, place)
    async with place.writer(provider=bank) as task:  # nothing is wrong any more
        await until(sale.ended, "still", task=task)


async def test_a_lost_database_comes_back_from_the_log(place: Installation, quiet_servers: LocalStack) -> None:
    """New tables, a log: refused, recovered, and every order is what it was, in versions above those published."""
    sale, bank = Sale(place), Bank()
    server = Installation(place.kafka, quiet_servers.postgres, place.log)
    name = place.postgres.rpartition("/")[2]
    place.log.append(3, [listed(stock=1_000)])
    sale.reserve("p1", "p2", "p3")
    sale.reserve("bad", method="declined")
    async with place.writer(provider=bank) as task:
        await until(sale.ended, "sold", task=task)
    before = await place.statuses()
    await server.rows(f"DROP DATABASE {name} WITH (FORCE)")
    await server.rows(f"CREATE DATABASE {name}")
    await migrate(place.postgres)
    with refused("older database was restored"):
        async with place.writer(provider=bank) as task:
            await task
    assert await place.statuses() == {}
    await recover(place)
    async with place.writer(provider=bank) as task:
        await until(sale.ended, "everything again", task=task)
    assert await place.statuses() == before
    await asyncio.to_thread(versions_rise, place)
    await asyncio.to_thread(judge, place)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE progress SET next_offset = 9 WHERE partition = 3", "ends at 2, but it was read up to 9"),
        ("UPDATE progress SET load = repeat('f', 32) WHERE partition = 3", "not the one remembered"),
    ],
)
async def test_a_log_that_lost_its_tail_stops_the_writer(place: Installation, damage: str, sentence: str) -> None:
    """The last counting record is read again at each start: beyond the end, or another than remembered, it stops."""
    place.log.append(3, [listed()], [reserved("p1", 1)])
    async with place.writer(payment="none") as task:
        await until(lambda: sold(place, "p1"), "applied", task=task)
    await place.rows(damage)
    with pytest.raises(LogBroken, match=sentence):
        async with place.writer(payment="none") as task:
            await task
    assert await place.statuses() == {"p1": "confirmed"}


@pytest.mark.parametrize("topic", [DECISIONS, ORDER_COMMANDS], ids=lambda topic: topic.name)
async def test_a_hole_in_the_log_stops_the_writer(place: Installation, topic: Topic) -> None:
    """A transaction's end takes an offset and is no record: what comes after it is not the next one, however often it
    is read."""

    def write() -> None:
        client = producer(place.kafka, **{"transactional.id": "hole"})
        client.init_transactions()
        for _ in range(2):
            client.begin_transaction()
            client.produce(topic.name, b"", partition=3)
            client.commit_transaction()

    await asyncio.to_thread(write)
    with refused(f"{topic.name}/3 jumps from offset 1 to 2: part of the log is gone"):
        async with asyncio.timeout(30), place.writer(payment="none") as task:
            await task


async def sold(place: Installation, purchase_id: str) -> object:
    """Whether it is confirmed."""
    query = "SELECT true FROM purchases WHERE purchase_id = $1 AND status = 'confirmed'"
    return await place.value(query, purchase_id)
