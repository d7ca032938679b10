"""The lists of orders among 200,000: what they return, and that each page comes through an index and touches little."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gateway.read_side.order_queries import COLUMNS, STATUSES, After, Query, orders
from order_writer.postgres.migrate import migrate
from tests.support.builders.order_book import EAGER_BUYER, LISTS, PLAIN_BUYER, RARE_PRODUCT, fill, touched
from tests.support.processes.stack import LocalStack

ROWS = 200_000
PAGE = 51
# A page looks at its own rows, and at those that share an instant with its ends: a thousand (a transaction) each.
READ_MAX, BLOCKS_MAX = 2_200, 320


@pytest.fixture(scope="module")
def book(components: LocalStack) -> Iterator[str]:
    """The DSN of a database with 200,000 orders."""
    name = f"book_{secrets.token_hex(4)}"
    dsn = f"{components.postgres.rpartition('/')[0]}/{name}"

    async def make() -> None:
        async with _connected(components.postgres) as server:
            await server.execute(f"CREATE DATABASE {name}")
        await migrate(dsn)
        async with _connected(dsn) as connection:
            await fill(connection, 1, ROWS)
            await connection.execute("ANALYZE purchases")

    async def drop() -> None:
        async with _connected(components.postgres) as server:
            await server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    asyncio.run(make())
    yield dsn
    asyncio.run(drop())


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def connection(book: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    async with _connected(book) as made:
        yield made


def asked(filters: dict[str, str], after: After | None = None, limit: int = PAGE) -> Query:
    """A page of a list."""
    return orders(limit, after, **filters)  # type: ignore[arg-type]


async def fetch(connection: asyncpg.Connection, query: Query) -> list[asyncpg.Record]:
    """The rows of a query."""
    return await connection.fetch(query.text, *query.arguments)


@pytest.mark.parametrize("filters", LISTS.values(), ids=LISTS.keys())
async def test_a_page_touches_little(connection: asyncpg.Connection, filters: dict[str, str]) -> None:
    """No table is read from end to end; the first page, one in the middle and the last look at a bounded part."""
    middle = After(
        await connection.fetchval("SELECT created_at FROM purchases WHERE source_offset = $1", ROWS // 2), ""
    )
    oldest = After(await connection.fetchval("SELECT min(created_at) FROM purchases"), "97ee-8")
    for after in (None, middle, oldest):
        found = await touched(connection, asked(filters, after))
        assert "Seq Scan" not in found.nodes
        assert found.blocks <= BLOCKS_MAX, found
        assert found.read <= READ_MAX, found


async def test_without_its_index_a_list_is_seen_to_touch_much(connection: asyncpg.Connection) -> None:
    """The limits above can be broken: dropping an index inside a transaction breaks them."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("DROP INDEX purchases_of_product")
        found = await touched(connection, asked({"product_id": RARE_PRODUCT}))
        assert found.read > READ_MAX or found.blocks > BLOCKS_MAX
        await connection.execute("DROP INDEX purchases_of_buyer")
        assert "Seq Scan" in (await touched(connection, orders(PAGE, buyer_id=PLAIN_BUYER))).nodes
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("filters", LISTS.values(), ids=LISTS.keys())
async def test_a_list_holds_what_matches_newest_first(connection: asyncpg.Connection, filters: dict[str, str]) -> None:
    """As a plain query without limit says, in its order."""
    conditions = " AND ".join(f"{column} = ${n}" for n, column in enumerate(filters, 1)) or "true"
    plain = f"SELECT {COLUMNS} FROM purchases WHERE {conditions} ORDER BY created_at DESC, purchase_id DESC LIMIT 300"  # noqa: S608
    assert await fetch(connection, asked(filters, limit=300)) == await connection.fetch(plain, *filters.values())


@pytest.mark.parametrize("filters", [{}, {"status": "released"}, {"buyer_id": EAGER_BUYER}], ids=str)
async def test_pages_join_without_gap_or_repetition(connection: asyncpg.Connection, filters: dict[str, str]) -> None:
    """Also where hundreds of rows share an instant: the pages together are the list."""
    whole = [row["purchase_id"] for row in await fetch(connection, asked(filters, limit=1_000))]
    pages: list[str] = []
    after = None
    while len(pages) < len(whole):
        rows = await fetch(connection, asked(filters, after, limit=77))
        pages += [row["purchase_id"] for row in rows]
        after = After(rows[-1]["created_at"], rows[-1]["purchase_id"])
    assert pages[: len(whole)] == whole


async def test_a_change_meanwhile_repeats_nothing(connection: asyncpg.Connection) -> None:
    """Rows that come or change status between two pages neither shift the second page nor come again in it."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        first = await fetch(connection, asked({}, limit=20))
        rest = await fetch(connection, asked({}, limit=40))
        await fill(connection, ROWS + 1, ROWS + 100)
        await connection.execute(
            "UPDATE purchases SET status = 'released' WHERE purchase_id = $1", rest[20]["purchase_id"]
        )
        second = await fetch(connection, asked({}, After(first[-1]["created_at"], first[-1]["purchase_id"]), 20))
        assert [row["purchase_id"] for row in second] == [row["purchase_id"] for row in rest[20:]]
    finally:
        await transaction.rollback()


def test_every_status_there_is_has_a_branch(components: LocalStack, book: str) -> None:
    """A status that the table allows and the list does not know would be missing from it."""

    async def allowed() -> str:
        async with _connected(book) as connection:
            return str(
                await connection.fetchval(
                    "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1", "purchases_status_check"
                )
            )

    assert set(STATUSES) == {word for word in asyncio.run(allowed()).split("'") if word.isalpha() and word.islower()}
