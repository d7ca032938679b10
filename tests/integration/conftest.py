"""Fixtures that several integration tests share."""

from collections.abc import Iterator

import pytest

from tests.support.sale import Sale, open_sale
from tests.support.stack import LocalStack, components


@pytest.fixture(scope="session")
def quiet_servers() -> Iterator[LocalStack]:
    """A broker and a database that no test kills: whoever uses them makes the topics anew and a database of its own."""
    with components() as running:
        yield running


@pytest.fixture(scope="session")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sale]:
    """One gateway and one inventory for all tests of the door; each test uses products and buyers of its own."""
    with open_sale(tmp_path_factory.mktemp("sale")) as running:
        yield running
