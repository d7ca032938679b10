"""Which progress in Postgres can only be that of an older database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from eventlog.reader import LogBroken
from order_writer.restore.restore_guard import ProgressGuard, check_known


class Progress:
    """A connection to a database that is so far."""

    def __init__(self, **reached: int) -> None:
        self.reached = {int(name[1:]): offset for name, offset in reached.items()}
        self.while_asked: Callable[[], None] = lambda: None

    async def fetch(self, query: str) -> list[dict[str, int]]:
        """The rows of `progress`."""
        assert "progress" in query
        rows = [{"partition": n, "next_offset": offset} for n, offset in self.reached.items()]
        self.while_asked()
        return rows


async def test_progress_that_went_back_is_an_older_database() -> None:
    """Of any partition, also of one that another process applies, also one whose progress is gone."""
    guard = ProgressGuard()
    await guard.verify(Progress(p3=10))
    await guard.verify(Progress(p3=12, p4=1))
    for older in (Progress(p3=11, p4=1), Progress(p3=12), Progress()):
        for verify in (guard.verify, guard.on_connect):
            with pytest.raises(LogBroken, match=r"older database was restored.*order_writer recover"):
                await verify(older)
    await guard.on_connect(Progress(p3=12, p4=1))


async def test_the_first_connection_may_lead_anywhere() -> None:
    """Nothing is known yet, and there may be no tables: they are not queried."""
    database = Progress()
    database.while_asked = lambda: pytest.fail("asked")
    await ProgressGuard().on_connect(database)


async def test_what_is_committed_while_postgres_answers_is_no_older_database() -> None:
    """Two shards write while a new connection is verified."""
    guard, database = ProgressGuard(), Progress(p3=10)
    await guard.verify(database)
    database.while_asked = lambda: guard.note({3: 20})
    await guard.verify(database)
    assert guard[3] == 20


def test_equal_and_newer_progress_is_well() -> None:
    """Nobody commits to the group before Postgres has it; the group may well be behind."""
    check_known(3, known=10, applied=10)
    check_known(3, known=11, applied=10)
    with pytest.raises(LogBroken, match=r"stampede.decisions/3 was applied up to 11 before, .* only up to 10"):
        check_known(3, known=10, applied=11)


class Pool:
    """Each acquisition leads to the next of these databases; None is unavailable. After the last one, stop."""

    def __init__(self, stopping: asyncio.Event, *databases: Progress | None) -> None:
        self._stopping, self._databases = stopping, list(databases)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Progress]:
        """A connection."""
        database = self._databases.pop(0)
        if not self._databases:
            self._stopping.set()
        if database is None:
            raise ConnectionRefusedError("unavailable")
        yield database


async def test_a_database_exchanged_under_its_connections_is_noticed() -> None:
    """No new connection is made, as behind a pooler: it is verified all the same, also after an outage."""
    guard, stopping = ProgressGuard(), asyncio.Event()
    await guard.watch(Pool(stopping, None, Progress(p3=10)), stopping)  # type: ignore[arg-type]
    assert guard[3] == 10
    with pytest.raises(LogBroken, match="older database was restored"):
        await guard.watch(Pool(asyncio.Event(), Progress(p3=9)), asyncio.Event())  # type: ignore[arg-type]
