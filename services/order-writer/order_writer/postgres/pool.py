"""Postgres as the order-writer uses it: one pool, loops that outlast outages, and which errors are an outage.

No transaction stays open across a call to anything but Postgres.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import asyncpg

CONNECTIONS_MAX = 8
COMMAND_TIMEOUT_S = 20.0
CONNECT_S_MAX = 10.0
STATEMENTS_KEPT_MAX = 100  # prepared, per connection
# Each try costs an unavailable database a connection; each second between two tries is one that the backlog waits.
BACKOFF_S_MAX = 8.0
# A writer frozen inside a transaction must not hold its progress row against its successor for ever. The same limits
# stand on the writer's role (`roles.py`): a pooler takes none from a session.
_SESSION = {
    "idle_in_transaction_session_timeout": "5000",
    "lock_timeout": "5000",
    "statement_timeout": "20000",
    "tcp_user_timeout": "10000",
    "timezone": "UTC",
}
_OUTAGE_CLASSES = ("08", "3D", "40", "53", "55", "57", "58", "25P03", "25006")  # the last: a standby, or full
_log = logging.getLogger(__name__)

Connection = asyncpg.pool.PoolConnectionProxy
Pool = asyncpg.Pool
T = TypeVar("T")


class DatabaseWrong(Exception):
    """Postgres cannot be used as it is; the message says what to do."""


def is_outage(error: BaseException) -> bool:
    """Whether trying again later can help: the server is unavailable, overloaded, restarting, or ended a deadlock."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_OUTAGE_CLASSES)
    return isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError)


async def open_pool(
    dsn: str,
    instance: str,
    *,
    pooled: bool = False,
    on_connect: Callable[[Any], Coroutine[Any, Any, None]] | None = None,
) -> Pool:
    """Connect, and check that the tables are there.

    Args:
        dsn: where; `sslmode`, `sslrootcert` and the other parameters of libpq URLs are understood.
        instance: shown in pg_stat_activity.
        pooled: a pooler in transaction mode stands in between: no statement is prepared for later, and nothing is
            set in a session that another client may have next.
        on_connect: awaited once for each new connection before its first use; `acquire` raises what it raises.

    Raises:
        DatabaseWrong: nothing answers there, or the schema is missing.
    """
    try:
        pool = await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=CONNECTIONS_MAX,
            command_timeout=COMMAND_TIMEOUT_S,
            timeout=CONNECT_S_MAX,
            init=on_connect,
            reset=_leave_as_it_is,
            server_settings=({} if pooled else _SESSION) | {"application_name": f"order-writer/{instance}"[:63]},
            statement_cache_size=0 if pooled else STATEMENTS_KEPT_MAX,
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise DatabaseWrong(
            f"cannot use Postgres ({describe(error)}): is STAMPEDE_POSTGRES right and the server up?"
        ) from None
    if await pool.fetchval("SELECT to_regclass('alembic_version') IS NULL OR to_regclass('outbox') IS NULL"):
        await pool.close()
        raise DatabaseWrong("Postgres has no tables of Stampede: run `python -m order_writer migrate` first.")
    return pool


async def _leave_as_it_is(_connection: object) -> None:
    """No session is ever changed here: resetting it at every release would cost a round trip for nothing."""


@contextmanager
def outage_logged(what: str, level: int = logging.WARNING) -> Iterator[None]:
    """Log an outage in the block and go on after it; any other error is raised."""
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise
        _log.log(level, "%s: %s", what, describe(error))


async def retry_outages(
    work: Callable[[], Awaitable[T]], heartbeat: Callable[[], None], stopping: asyncio.Event, what: str
) -> T | None:
    """Do `work` until the database lets it happen: after 1, 2, 4 … 8 s. None when asked to stop meanwhile.

    `work` must be safe to repeat: a COMMIT whose answer was lost may have happened.
    """
    wait_s = 1.0
    while not stopping.is_set():
        heartbeat()
        with outage_logged(f"{what} waits for Postgres, {wait_s:.0f} s"):
            return await work()
        await wait_or_stop(stopping, wait_s)
        wait_s = min(wait_s * 2, BACKOFF_S_MAX)
    return None


async def repeat(
    work: Callable[[], Awaitable[bool | None]],
    heartbeat: Callable[[], None],
    stopping: asyncio.Event,
    what: str,
    *,
    every_s: float,
    wake: asyncio.Event | None = None,
) -> None:
    """Do `work` until asked to stop, through outages: at once again while it returns True, else after `every_s`.

    Setting `wake` cuts a pause short; what it stands for must be there before it is set.
    """
    while not stopping.is_set():
        if wake:
            wake.clear()
        if not await retry_outages(work, heartbeat, stopping, what):
            await wait_or_stop(wake or stopping, every_s)


def describe(error: BaseException) -> str:
    """The text of an error, or at least its type."""
    return str(error) or type(error).__name__


async def wait_or_stop(event: asyncio.Event, seconds: float) -> None:
    """Wait for `event`, but no longer than `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
