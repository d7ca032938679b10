"""Fixtures that the whole test run shares."""

from collections.abc import Iterator

import pytest

from tests.support import stack


@pytest.fixture(scope="session")
def components() -> Iterator[stack.LocalStack]:
    """Kafka, Postgres and Redis for the whole run; tests use names of their own in them and do not kill them."""
    with stack.components() as running:
        yield running
