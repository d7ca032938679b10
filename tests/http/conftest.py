"""One sale for the long tests of the edge."""

from collections.abc import Iterator

import pytest

from tests.support.processes.sale import Sale, open_sale


@pytest.fixture(scope="session")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sale]:
    """One gateway and one inventory for all; each test uses products and buyers of its own."""
    with open_sale(tmp_path_factory.mktemp("sale")) as running:
        yield running
