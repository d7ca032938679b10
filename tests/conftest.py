"""Fixtures that the whole test run shares."""

from collections.abc import AsyncIterator, Iterator

import pytest

from order_writer.unit_of_work import UnitsOfWork
from tests.support.builders.orders import Installation, installation, tables, units_of
from tests.support.processes import stack
from tests.support.processes.stack import LocalStack


@pytest.fixture(scope="session")
def components() -> Iterator[LocalStack]:
    """Kafka, Postgres and Redis for the whole run; tests use names of their own in them and do not kill them."""
    with stack.components() as running:
        yield running


@pytest.fixture(scope="session")
def quiet_servers() -> Iterator[LocalStack]:
    """A broker and a database that no test kills: whoever uses them makes the topics anew and a database of its own."""
    with stack.components() as running:
        yield running


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    """The quiet ones; with `pytestmark = pytest.mark.own_servers` a module has its own, and may do to them what it
    likes."""
    if request.node.get_closest_marker("own_servers"):
        with stack.components() as running:
            yield running
    else:
        yield request.getfixturevalue("quiet_servers")


@pytest.fixture
async def place(servers: LocalStack) -> AsyncIterator[Installation]:
    """For order-writers: new topics, new tables."""
    async with installation(servers.kafka, servers.postgres) as made:
        yield made


@pytest.fixture
async def quiet(quiet_servers: LocalStack) -> AsyncIterator[Installation]:
    """New tables, for tests that write no record."""
    async with tables(quiet_servers.kafka, quiet_servers.postgres) as made:
        yield made


@pytest.fixture
async def units(quiet: Installation) -> AsyncIterator[UnitsOfWork]:
    """Transactions on them."""
    async with units_of(quiet) as opened:
        yield opened
