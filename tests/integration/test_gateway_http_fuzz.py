"""Schemathesis over a real gateway, briefly; `make test-http` does it at length."""

from pathlib import Path

import pytest

from tests.support.builders.gateway import ADMIN_KEY
from tests.support.faults.fuzz import fuzz
from tests.support.processes.jwt_sale import with_tokens
from tests.support.processes.sale import Sale

CASES_PER_ROUTE = 10


@pytest.mark.parametrize("face", ["buyers", "operators"])
def test_the_gateway_does_what_its_description_says(sale: Sale, tmp_path: Path, face: str) -> None:
    """Every boundary of every field, and some chance: no 5xx, no undocumented answer, nothing wrong accepted."""
    with with_tokens(sale, tmp_path) as (gateway, issuer):
        url, token = (gateway.url, issuer.token("fuzz")) if face == "buyers" else (gateway.admin_url, ADMIN_KEY)
        found = fuzz(
            face, url, token, tmp_path, cases_per_route=CASES_PER_ROUTE, phases="examples,coverage,fuzzing", wait_s=120
        )
        assert found.clean, found.said
        assert found.cases > 200, found.said
        assert "Traceback" not in gateway.said()
