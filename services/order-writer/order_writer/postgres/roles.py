"""Two roles that may do no more than they must: the writer (order-writers) and the reader (gateways).

The migrating role owns the tables, and is the third. Limits that a frozen client must not escape stand on the roles:
a pooler would drop them from the session.
"""

import base64
import hashlib
import hmac
import re
import secrets
from typing import Literal, NamedTuple
from urllib.parse import unquote

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from order_writer.postgres.pool import DatabaseWrong

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SCRAM_ROUNDS = 4_096
_LIMITS = {"idle_in_transaction_session_timeout": "5s", "lock_timeout": "5s", "timezone": "UTC"}
LIMITS = {"writer": _LIMITS | {"statement_timeout": "20s"}, "reader": _LIMITS | {"statement_timeout": "30s"}}
# No role deletes a purchase, a product or a progress. A query that locks rows needs the right to update them.
GRANTS = {
    "writer": (
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        "REVOKE INSERT, UPDATE ON alembic_version FROM {role}",
        "GRANT DELETE ON outbox, pending_commands TO {role}",
    ),
    # Gateways write what all of an installation have to agree on.
    "reader": (
        "GRANT SELECT ON purchases, products, progress, installation TO {role}",
        "GRANT INSERT, UPDATE ON installation TO {role}",
    ),
}


class Role(NamedTuple):
    """A role's name, and its password; without one it is left as it is found, or made unable to log in."""

    name: str
    password: str


def parse_role(text: str) -> Role:
    """Read `name` or `name:password`, the password percent-encoded as in a URL.

    Raises:
        ValueError: it is neither.
    """
    name, _, password = text.partition(":")
    role = Role(name, unquote(password))
    if not _NAME.fullmatch(name) or not (role.password.isascii() and role.password.isprintable()):
        raise ValueError("a role is name or name:password, the name of a-z, 0-9 and _, the password of ASCII")
    return role


def scram_verifier(password: str) -> str:
    """The stored form of a password (RFC 5803): no log of statements ever holds the password itself."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    kept = [base64.b64encode(part).decode() for part in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))]
    return f"SCRAM-SHA-256${_SCRAM_ROUNDS}:{kept[0]}${kept[1]}:{kept[2]}"


async def grant(connection: AsyncConnection, kind: Literal["writer", "reader"], role: Role) -> list[str]:
    """Make the role if it is not there, and give it its rights. Returns the refusals of the server that do no harm.

    Raises:
        DatabaseWrong: there is no such role and this user may not make one.
        DBAPIError: anything else.
    """
    refused = await _make(connection, role, LIMITS[kind])
    schema = await _value(connection, "quote_ident(current_schema())")
    if kind == "writer":  # before version 15 everybody could make tables there
        refused += await _try(connection, f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC")
    for statement in GRANTS[kind]:
        await connection.exec_driver_sql(statement.format(schema=schema, role=role.name))
    return refused


async def _make(connection: AsyncConnection, role: Role, limits: dict[str, str]) -> list[str]:
    name, database = role.name, await _value(connection, "quote_ident(current_database())")
    if not await _value(connection, f"EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}')") and await _try(
        connection, f"CREATE ROLE {name} NOSUPERUSER NOCREATEDB NOCREATEROLE"
    ):
        raise DatabaseWrong(
            f"Postgres lets this user make no roles: make {name} by other means (LOGIN, with a password, no other "
            "rights; a managed database has a page for it), and migrate again: it is then given what it needs."
        )
    settings = [f"ALTER ROLE {name} IN DATABASE {database} SET {limit} = '{value}'" for limit, value in limits.items()]
    if role.password:
        # Quotes cannot occur in it: it is made of base64, `$`, `:` and `-`.
        settings.append(f"ALTER ROLE {name} LOGIN PASSWORD '{scram_verifier(role.password)}'")
    refused = [sentence for setting in settings for sentence in await _try(connection, setting)]
    await connection.exec_driver_sql(f"GRANT CONNECT ON DATABASE {database} TO {name}")
    schema = await _value(connection, "quote_ident(current_schema())")
    await connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    return refused


async def _try(connection: AsyncConnection, statement: str) -> list[str]:
    """The server's refusal, none or one sentence; the transaction goes on either way."""
    try:
        async with connection.begin_nested():
            await connection.exec_driver_sql(statement)
    except DBAPIError as error:
        return [f"{statement.partition(' PASSWORD')[0]}: {str(error.orig).splitlines()[0].rpartition(': ')[2]}"]
    return []


async def _value(connection: AsyncConnection, expression: str) -> str | bool:
    return (await connection.exec_driver_sql(f"SELECT {expression}")).scalar_one()  # type: ignore[no-any-return]
