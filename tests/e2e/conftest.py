"""One whole stack for the end-to-end tests: they sell products of their own and leave every process running."""

from collections.abc import Iterator

import pytest

from tests.support.faults.fuzz import WEBHOOK_SECRET
from tests.support.processes.stack import LocalStack, stack


@pytest.fixture(scope="session")
def whole() -> Iterator[LocalStack]:
    """All four services on real components."""
    with stack(env={"STAMPEDE_WEBHOOK_SECRET": WEBHOOK_SECRET}) as running:
        yield running
