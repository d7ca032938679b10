"""A cancelled product: its orders up to the place of the command are undone, whenever and however often it is read."""

import asyncio
from datetime import UTC, datetime
from functools import partial

from eventlog.reader import Progress
from order_writer.consume.commands import Commands
from order_writer.consume.progress_consumer import Move
from order_writer.endings import product_cancellation
from order_writer.postgres.migrate import migrate
from order_writer.saga.decision_batch import Record
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.codec import encode
from stampede_schemas.order_commands import CancelProductRequested
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import DEAD_LETTERS, partition_of
from tests.support.builders.orders import Installation, apply_decisions, insert_orders, letters, listed, reserved, until
from tests.support.builders.reports import all_of

HERE = partition_of("shoe")
NOW = datetime.now(UTC)
DONE = "SELECT count(*) = $1 FROM product_cancellations WHERE done_at IS NOT NULL"
SOLD = "SELECT count(*) = $1 FROM purchases WHERE status = 'confirmed'"


async def read(place: Installation, units: UnitsOfWork, *commands: CancelProductRequested) -> None:
    """Apply them as the next records of `order-commands`, and sweep until there is nothing left to do."""
    await place.rows("INSERT INTO command_progress VALUES (0, 0, 'id') ON CONFLICT DO NOTHING")
    was = await place.value("SELECT next_offset FROM command_progress")
    assert isinstance(was, int)
    records = [Record(encode(command), 0, was + n, NOW) for n, command in enumerate(commands)]
    await Commands(units).apply(records, {0: Move(was, Progress(was + len(records)))})
    while await product_cancellation.sweep(units):
        pass


async def cancelled(place: Installation) -> int:
    """How many orders an operator has undone; they are those of the lowest numbers."""
    found = await place.rows("SELECT reservation_no FROM purchases WHERE reason = 'cancelled_by_operator' ORDER BY 1")
    assert [row[0] for row in found] == list(range(1, len(found) + 1))
    return len(found)


async def test_a_cancellation_means_the_same_when_it_is_read_late_or_again(
    quiet: Installation, units: UnitsOfWork
) -> None:
    """`p1` to `p5`, at offsets of their numbers, are sold. A command of when `p1` and `p2` stood in the log undoes
    those; repeated, also with a later place, it undoes nothing more. Another one does."""
    await insert_orders(quiet, 5, "confirmed")
    await apply_decisions(quiet, "shoe", 5)
    for command in (all_of("shoe", 3), all_of("shoe", 3), all_of("shoe", 9)):
        await read(quiet, units, command)
        assert await cancelled(quiet) == 2
        assert await quiet.value(DONE, 1)
    await read(quiet, units, all_of("shoe", 5, "another"))
    assert await cancelled(quiet) == 4
    assert await quiet.value(DONE, 2)


async def test_a_repeat_in_one_batch_has_the_place_of_the_first(quiet: Installation, units: UnitsOfWork) -> None:
    """An operator's retry after no answer: both records may stand in the log. The same one counts after a restore."""
    await insert_orders(quiet, 5, "confirmed")
    await apply_decisions(quiet, "shoe", 5)
    await read(quiet, units, all_of("shoe", 3), all_of("shoe", 6))
    assert await cancelled(quiet) == 2


async def test_what_stood_in_the_log_undecided_is_undone_too(quiet: Installation, units: UnitsOfWork) -> None:
    """The cancellation is done only when its place is applied; what follows it is left alone."""
    await apply_decisions(quiet, "shoe", 1)
    await read(quiet, units, all_of("shoe", 4))
    await insert_orders(quiet, 5, "confirmed")
    for reached in (2, 3):
        assert await quiet.value(DONE, 0)
        await apply_decisions(quiet, "shoe", reached)
        await product_cancellation.sweep(units)
    assert await quiet.value(DONE, 1)
    assert await cancelled(quiet) == 3


async def test_an_empty_log_is_cancelled_at_once(quiet: Installation, units: UnitsOfWork) -> None:
    """Nothing stands below its beginning."""
    await apply_decisions(quiet, "shoe", -1)
    await read(quiet, units, all_of("shoe", 0))
    assert await quiet.value(DONE, 1)


async def test_a_product_is_cancelled_and_sold_again_while_nobody_listens(place: Installation) -> None:
    """The order-writer is away while an operator cancels two orders, reopens, and three more are bought: it undoes the
    two, and the three are sold."""
    place.log.append(HERE, [listed()], [reserved("first-1", 1)], [reserved("first-2", 2)])
    async with place.writer() as task:
        await until(lambda: place.value(SOLD, 2), "the first sale", task=task)
    place.command(all_of("shoe", place.log.sources[HERE]))
    place.log.append(HERE, *([reserved(f"second-{n}", 2 + n)] for n in (1, 2, 3)))
    async with place.writer() as task:
        await until(lambda: place.value(DONE, 1), "the cancellation is done", task=task)
        await until(lambda: place.value(SOLD, 3), "the second sale", task=task)
        await until(lambda: place.value("SELECT count(*) = 0 FROM outbox"), "sent", task=task)
    asked = await asyncio.to_thread(place.requests)
    backs = sorted(request.purchase_id for _, request in asked if isinstance(request, ReleaseRequested))
    assert backs == ["first-1", "first-2"]
    released = {name for name, status in (await place.statuses()).items() if status == "released"}
    assert released == {"first-1", "first-2"}


async def test_a_cancellation_without_a_place_is_a_dead_letter(place: Installation) -> None:
    """It is of before commands had one: nothing says which orders it meant, so it undoes none, and says so."""
    place.log.append(HERE, [listed()], [reserved("p1", 1)])
    place.command(all_of("shoe", None), all_of("shoe", 0, "after"))
    async with place.writer() as task:
        await until(partial(letters, place, 1), "the dead letter", task=task)
        await until(lambda: place.value(DONE, 1), "the one behind it", task=task)
        await until(lambda: place.value(SOLD, 1), "p1 is sold", task=task)
    assert place.values(DEAD_LETTERS.name) == [encode(all_of("shoe", None))]


async def test_a_cancellation_that_was_read_before_the_upgrade_keeps_its_meaning(
    quiet: Installation, units: UnitsOfWork
) -> None:
    """It meant what had a row when it was read: what came since then is left alone."""
    await quiet.rows("ALTER TABLE product_cancellations DROP COLUMN requests_end")
    await quiet.rows("UPDATE alembic_version SET version_num = '0004'")
    await insert_orders(quiet, 5, "confirmed")
    await quiet.rows("UPDATE purchases SET created_at = now() + interval '1 minute' WHERE reservation_no > 2")
    await quiet.rows("INSERT INTO product_cancellations (request_id, product_id) VALUES ('all', 'shoe'), ('no', 'hat')")
    await migrate(quiet.postgres)
    await apply_decisions(quiet, "shoe", 5)
    await apply_decisions(quiet, "hat", 5)
    while await product_cancellation.sweep(units):
        pass
    assert await cancelled(quiet) == 2
    assert await quiet.value(DONE, 2)
