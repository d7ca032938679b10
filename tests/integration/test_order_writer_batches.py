"""However the log is cut into batches, and whichever of two writers is quicker: the same rows, money and events."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import asyncpg
import pytest

from eventlog.reader import Progress
from order_writer.consume import decisions
from order_writer.consume.progress_consumer import Move, ProgressConflict
from order_writer.saga.decision_batch import Batch
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.codec import decode_order_event
from stampede_schemas.decisions import AnyDecision
from stampede_schemas.identifiers import Position, WriterEpoch
from stampede_schemas.topics import ORDERS
from tests.support.builders.orders import Installation, rejected, released, reserved, waiting_messages

SHARDS = (0, 7)
# Decisions on one purchase: X rejected, S reserved, R that reservation released.
LOGS = ("X", "XX", "S", "SX", "SR", "XS", "XXS", "XSX", "XSR", "XXSR", "XSRX", "SRX")
LONGEST = max(map(len, LOGS))
COMPARED = """
SELECT purchase_id, buyer_id, product_id, quantity, status, reason, unit_price_minor, currency, payment_method,
       fingerprint, refund, version, trace_id, traceparent, reservation_no IS NULL AS unnumbered,
       hold_until - updated_at < interval '61 seconds' AS held, stock_returned_at IS NULL AS unreturned,
       (SELECT state FROM payments y WHERE y.purchase_id = p.purchase_id) AS payment
FROM purchases p WHERE partition = $1"""


class Outcome(NamedTuple):
    """How a purchase stands in the end: its row, its payment, the versions published of it."""

    status: str
    version: int
    payment: str | None
    published: list[int]


def expected(log: str, *, unpaid: bool, lifted: int) -> Outcome:
    """By the log alone. `lifted`: the version that was published before a restore."""
    if "S" not in log:
        return Outcome("rejected", 1 + lifted, None, [])
    versions = [2 + lifted + n for n in range(1 + unpaid + ("R" in log))]
    status = "released" if "R" in log else "confirmed" if unpaid else "reserved"
    payment = "void_due" if "R" in log else None if unpaid else "due"
    return Outcome(status, versions[-1], payment, versions[1:])


class Shard:
    """One partition: every log as a purchase of its own for every cut, and how far it is applied."""

    def __init__(self, partition: int) -> None:
        self.partition, self.progress, self.number = partition, Progress(), 0
        self.reserved_at: dict[str, Position] = {}

    def batches(self, cut: int) -> Iterator[tuple[Move, Batch]]:
        """All logs, side by side, cut after each position whose bit is set in `cut`."""
        borders = [0, *(at for at in range(1, LONGEST) if cut >> (at - 1) & 1), LONGEST]
        for start, end in pairwise(borders):
            batch, was = Batch(), self.progress.next_offset
            for at in range(start, end):
                for log in LOGS:
                    if at < len(log):
                        self.add(batch, f"{self.partition}-{log}-{cut}", log[at])
            yield Move(was, self.progress), batch

    def add(self, batch: Batch, name: str, kind: str) -> None:
        """One record of one decision. A rejected body is another than the reserved one, where they differ."""
        offset = self.progress.next_offset
        self.progress = Progress(offset + 1, offset, WriterEpoch("l" * 32), offset)
        decision: AnyDecision
        match kind:
            case "X":
                decision = rejected(name, method="declined")
            case "S":
                self.number += 1
                self.reserved_at[name] = Position(self.partition, offset, 0)
                decision = reserved(name, self.number, product_id=f"shoe-{self.partition}", quantity=1)
            case _:
                decision = released(name, self.reserved_at[name])
        batch.add(self.partition, offset, [decision])


async def offer(units: UnitsOfWork, shard: Shard, cut: int, *, unpaid: bool) -> None:
    """Two consumers come with each batch at once: one of them has a conflict."""

    async def write(move: Move, batch: Batch) -> None:
        async with units.open() as unit:
            await decisions.apply(unit, {shard.partition: move}, batch, unpaid=unpaid)

    for move, batch in shard.batches(cut):
        done = await asyncio.gather(write(move, batch), write(move, batch), return_exceptions=True)
        assert sorted(map(type, done), key=str) == [type(None), ProgressConflict], done


async def begin(place: Installation, *, lifted: int) -> None:
    """Progress of both shards; with `lifted`, every purchase was published at that version before a restore."""
    await place.rows("INSERT INTO progress SELECT unnest($1::int[]), 0, -1, '', -1, 'topic'", list(SHARDS))
    if lifted:
        names = [f"{n}-{log}-{cut}" for n in SHARDS for log in LOGS for cut in range(2 ** (LONGEST - 1))]
        await place.rows("INSERT INTO published SELECT unnest($1::text[]), $2", names, lifted)


@pytest.mark.parametrize("unpaid", [False, True], ids=["paid", "free"])
@pytest.mark.parametrize("lifted", [0, 5], ids=["", "restored"])
async def test_every_cut_of_the_log_gives_the_same(
    quiet: Installation, units: UnitsOfWork, *, unpaid: bool, lifted: int
) -> None:
    """A purchase that was rejected, once or more, and then reserved is its reservation: version 2, paid, published
    from version 3 on. In two shards of partitions that are written at once."""
    await begin(quiet, lifted=lifted)
    shards = [Shard(n) for n in SHARDS]
    for cut in range(2 ** (LONGEST - 1)):
        await asyncio.gather(*(offer(units, shard, cut, unpaid=unpaid) for shard in shards))
    published: dict[str, list[int]] = {}
    for message in await waiting_messages(quiet):
        if message.topic == ORDERS.name:
            event = decode_order_event(message.value)
            published.setdefault(event.purchase_id, []).append(event.version)
    for shard in shards:
        by_log: dict[str, list[asyncpg.Record]] = {}
        for row in await quiet.rows(COMPARED, shard.partition):
            log = row["purchase_id"].split("-")[1]
            by_log.setdefault(log, []).append(row)
            outcome = Outcome(row["status"], row["version"], row["payment"], published.get(row["purchase_id"], []))
            assert outcome == expected(log, unpaid=unpaid, lifted=lifted), row["purchase_id"]
            assert (row["payment_method"], row["quantity"]) == (("ok", 1) if "S" in log else ("declined", 2))
        assert by_log.keys() == set(LOGS)
        for log, rows in by_log.items():
            assert len(rows) == 2 ** (LONGEST - 1)
            bare = {tuple(str(value).replace(row["purchase_id"], "p") for value in row.values()) for row in rows}
            assert len(bare) == 1, (log, bare)
