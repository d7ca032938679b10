"""Schemathesis over a real gateway, at length: thousands of requests by the descriptions, and against them."""

from pathlib import Path

import httpx
import pytest

from tests.support.builders.gateway import ADMIN_KEY
from tests.support.faults.fuzz import fuzz
from tests.support.processes.jwt_sale import with_tokens
from tests.support.processes.sale import Sale

CASES = {"buyers": 8_000, "operators": 7_000}
CASES_PER_ROUTE = 1_000
SEEDS_MAX = 20


@pytest.mark.timeout(900)
@pytest.mark.parametrize("face", ["buyers", "operators"])
def test_thousands_of_requests_find_nothing(sale: Sale, tmp_path: Path, face: str) -> None:
    """Seed after seed: no 5xx, no hang, nothing undocumented, nothing wrong accepted; and the gateway is well after."""
    done = 0
    with with_tokens(sale, tmp_path) as (gateway, issuer):
        for seed in range(1, SEEDS_MAX):
            url, token = (gateway.url, issuer.token("fuzz")) if face == "buyers" else (gateway.admin_url, ADMIN_KEY)
            phases = "examples,coverage,fuzzing" if seed == 1 else "fuzzing"
            found = fuzz(
                face, url, token, tmp_path, cases_per_route=CASES_PER_ROUTE, phases=phases, wait_s=800, seed=seed
            )
            assert found.clean, found.said
            done += found.cases
            if done >= CASES[face]:
                break
        assert "Traceback" not in gateway.said()
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
    print(f"{done} cases, {seed} seeds")
    assert done >= CASES[face]
