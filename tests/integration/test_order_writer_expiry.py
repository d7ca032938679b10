"""When a hold may end: each rule on a real database, with rows made by hand."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from order_writer.endings.hold_expiry import HOLDS_PER_TRANSACTION_MAX, SWEEP_EVERY_S, HoldExpiry
from order_writer.ops.metrics import Metrics
from order_writer.postgres.pool import repeat
from order_writer.saga import orders
from order_writer.unit_of_work import UnitOfWork, UnitsOfWork
from stampede_schemas.codec import decode_request, split_requests
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import ORDER_COMMANDS, REQUESTS, partition_of
from tests.support.builders.orders import Installation, applied_until, insert_orders, until, waiting_messages

GRACE_S = 5.0


def expiry(units: UnitsOfWork, grace_s: float = GRACE_S) -> HoldExpiry:
    """One that sweeps when the test says so."""
    return HoldExpiry(units, Metrics("test"), grace_s)


async def released(quiet: Installation) -> int:
    """How many holds have ended."""
    return (await quiet.rows("SELECT count(*) FROM purchases WHERE status = 'released'"))[0][0]  # type: ignore[no-any-return]


async def test_a_hold_ends_only_past_the_applied_through_watermark(quiet: Installation, units: UnitsOfWork) -> None:
    """An approval may stand in the purchase's partition of the commands until that is applied beyond the hold's end."""
    await insert_orders(quiet, 1)
    its_own = partition_of("p1")
    for partitions, seconds in ((0, 0.0), (its_own, 0.0), (12, -61.0)):  # no watermark; its own missing; too early
        await applied_until(quiet, ORDER_COMMANDS.name, seconds, partitions)
        await expiry(units).sweep()
        assert await released(quiet) == 0
    await quiet.rows("UPDATE applied SET until = now() WHERE partition <> $1", its_own)
    await expiry(units).sweep()
    assert await released(quiet) == 0  # its own is behind
    await quiet.rows("UPDATE applied SET until = now() - interval '1 day' * sign(abs(partition - $1))", its_own)
    await expiry(units).sweep()
    assert await released(quiet) == 1  # the others are


async def test_a_partition_that_is_behind_holds_up_only_its_own(quiet: Installation, units: UnitsOfWork) -> None:
    """Its overdue holds are more than a batch, and first in line: those of all other partitions end."""
    await insert_orders(quiet, 7_000)
    ids = [f"p{n}" for n in range(1, 7_001)]
    stuck = [purchase_id for purchase_id in ids if partition_of(purchase_id) == 5]
    assert len(stuck) > HOLDS_PER_TRANSACTION_MAX
    rest = set(ids) - set(stuck)
    earlier = "UPDATE purchases SET hold_until = hold_until - interval '1 minute' WHERE purchase_id = ANY($1)"
    await quiet.rows(earlier, stuck)
    await quiet.rows("DELETE FROM purchases WHERE purchase_id = ANY($1)", sorted(rest)[30:])
    await applied_until(quiet, ORDER_COMMANDS.name, 0.0)
    await quiet.rows("UPDATE applied SET until = now() - interval '1 hour' WHERE partition = 5")
    one = expiry(units)
    for _ in range(2):  # each pass begins with the earliest again
        assert [await one.sweep(), await one.sweep()] == [True, False]
    assert await released(quiet) == 30
    await applied_until(quiet, ORDER_COMMANDS.name, 0.0)
    assert [await one.sweep(), await one.sweep()] == [True, False]
    assert await released(quiet) == 30 + len(stuck)


@pytest.mark.parametrize(
    ("asked", "lease", "hold", "ended"),
    [
        (-3, 3, -2, False),  # begun before the hold's end, still open: one grace more
        (-1, 3, -2, True),  # begun after it
        (-3, -1, -2, True),  # nobody waits for it any more
        (-9, 3, -GRACE_S - 1, True),  # the grace is over: it comes once
    ],
)
async def test_an_open_authorisation_has_one_grace_more(
    quiet: Installation, units: UnitsOfWork, asked: float, lease: float, hold: float, ended: bool
) -> None:
    """In seconds from now: when it began, until when it is leased, when the hold ends."""
    await insert_orders(quiet, 1)
    await applied_until(quiet, ORDER_COMMANDS.name, 0.0)
    await quiet.rows("UPDATE purchases SET hold_until = now() + make_interval(secs => $1)", hold)
    await quiet.rows(
        """INSERT INTO payments (purchase_id, method, state, begun_at, asked_at, lease_until) VALUES
           ('p1', 'ok', 'due', now(), now() + make_interval(secs => $1), now() + make_interval(secs => $2))""",
        asked,
        lease,
    )
    await expiry(units).sweep()
    assert await released(quiet) == ended


async def test_several_sweeps_end_each_hold_once(quiet: Installation, units: UnitsOfWork) -> None:
    """Four at once over 1,500 holds: one event, one release and one void each, and none waits for another's rows."""
    await insert_orders(quiet, 1_500)
    await applied_until(quiet, ORDER_COMMANDS.name, 0.0)

    async def sweep_all() -> None:
        while await expiry(units).sweep():
            pass

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(sweep_all())
    assert await released(quiet) == 1_500
    messages = await waiting_messages(quiet)
    events = Counter(message.key for message in messages if message.topic != REQUESTS.name)
    requests = [decode_request(raw) for m in messages if m.topic == REQUESTS.name for raw in split_requests(m.value)]
    backs = Counter(request.purchase_id for request in requests if isinstance(request, ReleaseRequested))
    assert (len(events), set(events.values())) == (1_500, {1})
    assert (len(backs), set(backs.values())) == (1_500, {1})
    assert await quiet.value("SELECT count(*) FROM payments WHERE state = 'void_due'") == 1_500


async def test_an_approval_under_way_is_not_overtaken(quiet: Installation, units: UnitsOfWork) -> None:
    """Its transaction holds the row: the sweep passes over it, and afterwards finds it sold."""
    await insert_orders(quiet, 2)
    await applied_until(quiet, ORDER_COMMANDS.name, 0.0)
    async with units.open() as approving:
        await approving.handle([(PurchaseId("p1"), orders.PaymentApproved())])
        await expiry(units).sweep()
        assert await quiet.statuses() == {"p1": "reserved", "p2": "released"}
    await expiry(units).sweep()
    assert await quiet.statuses() == {"p1": "confirmed", "p2": "released"}


class Interrupted(UnitsOfWork):
    """A database that is unavailable for the first transactions."""

    outages = 2
    back_at = 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[UnitOfWork]:
        """See UnitsOfWork."""
        if self.outages:
            self.outages -= 1
            self.back_at = time.monotonic()
            raise ConnectionRefusedError("unavailable")
        async with super().open() as unit:
            yield unit


async def test_sweeping_begins_after_one_grace_without_interruption(quiet: Installation, units: UnitsOfWork) -> None:
    """At the start, and again after each time without the database: due payments are tried first."""
    grace_s = 0.6
    interrupted = Interrupted(units.pool, lambda *_: None)
    await insert_orders(quiet, 1)
    await applied_until(quiet, ORDER_COMMANDS.name, 0.0)
    stopping, began = asyncio.Event(), time.monotonic()
    sweep = expiry(interrupted, grace_s).round
    task = asyncio.create_task(repeat(sweep, lambda: None, stopping, "sweeping", every_s=SWEEP_EVERY_S))
    await until(lambda: released(quiet), "the hold's end", task=task)
    ended = time.monotonic()
    stopping.set()
    await task
    assert interrupted.outages == 0
    assert ended - interrupted.back_at >= grace_s
    assert ended - began >= 3 * grace_s - SWEEP_EVERY_S
