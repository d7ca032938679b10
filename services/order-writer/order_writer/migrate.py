"""`python -m order_writer migrate`: bring the schema to the newest step. An explicit act; services never do it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from order_writer.database import DatabaseWrong

_LOCK = 7_226_473  # any number that nobody else in this database locks


async def migrate(dsn: str) -> None:
    """Apply what is missing, all of it in one transaction. Repeating it, also at once, changes nothing.

    Raises:
        DatabaseWrong: it could not be done; nothing was changed.
    """
    try:
        engine = create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
    except ArgumentError:
        raise DatabaseWrong("STAMPEDE_POSTGRES is no Postgres URL (postgresql://user@host:port/database)") from None
    try:
        async with engine.begin() as connection:
            # A second migration waits here, and then finds nothing to do.
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await connection.run_sync(_upgrade)
    except (OSError, TimeoutError) as error:
        raise DatabaseWrong(
            f"Postgres does not answer ({error}): is STAMPEDE_POSTGRES right and the server up?"
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
