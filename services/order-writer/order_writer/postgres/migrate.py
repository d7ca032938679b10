"""`python -m order_writer migrate`: bring the schema to the newest step. An explicit act; services never do it."""

from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from order_writer.postgres.pool import CONNECT_S_MAX, DatabaseWrong, describe
from order_writer.postgres.roles import Role, grant

_LOCK = 7_226_473  # any number that no other program locks in this database


async def migrate(dsn: str, writer: Role | None = None, reader: Role | None = None) -> list[str]:
    """Apply what is missing, all of it in one transaction. Repeating it, also at once, changes nothing.

    Args:
        dsn: of who is to own the tables.
        writer: the role of order-writers, made if need be; None: whoever connects has to be the owner.
        reader: the same for gateways.

    Returns:
        One sentence for each thing that the server refused and that can be lived with: a limit that did not go onto
        a role, a password it wants to set itself.

    Raises:
        DatabaseWrong: it could not be done; nothing was changed.
    """
    # The driver reads the URL: it knows `sslmode` and the rest, which SQLAlchemy would take for its own.
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(asyncpg.connect, dsn, timeout=CONNECT_S_MAX, statement_cache_size=0),
        # Behind a pooler a name may be taken by the session's last user.
        connect_args={"prepared_statement_name_func": lambda: f"migrate_{uuid4().hex}"},
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            # A second migration waits here, and then finds nothing to do.
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await connection.run_sync(_upgrade)
            refused = await grant(connection, "writer", writer) if writer else []
            return refused + (await grant(connection, "reader", reader) if reader else [])
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise DatabaseWrong(
            f"cannot use Postgres ({describe(error)}): is STAMPEDE_POSTGRES right "
            "(postgresql://user@host:port/database) and the server up?"
        ) from None
    except DBAPIError as error:
        raise DatabaseWrong(f"Postgres refused the migration: {str(error.orig).splitlines()[0]}") from None
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
