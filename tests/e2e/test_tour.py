"""One purchase through the code of the running services: few visits of few files, and a tour that still leads there."""

import ast
import re

import pytest

from tests.support.processes.stack import ROOT
from tests.tour.purchase import SERVICES, follow, visits
from tests.tour.stays import Stay

VISITS_MAX = {"gateway": (20, 9), "inventory": (14, 6), "order-writer": (20, 9)}  # visits, files
SEEN = {
    "gateway": {"PurchaseEndpoint._purchase", "IdentityKey.purchase_id", "RequestBatcher._produce", "Projection.fold"},
    "inventory": {"decide", "Worker._produce"},
    "order-writer": {"Batch.add", "react", "Relay._produce"},
}


@pytest.fixture(scope="module")
def told() -> dict[str, list[Stay]]:
    """The stays of a purchase that was accepted, reserved and paid."""
    return follow()


@pytest.mark.parametrize("service", SERVICES)
def test_a_purchase_makes_few_visits(told: dict[str, list[Stay]], service: str) -> None:
    """What has to be seen was seen; beyond that a purchase stays in one place as long as it can."""
    functions = {stay.function for stay in told[service]}
    assert functions >= SEEN[service]
    came = visits(told[service])
    most_visits, most_files = VISITS_MAX[service]
    assert len(came) <= most_visits, came
    assert len(set(came)) <= most_files, set(came)


@pytest.mark.parametrize("service", SERVICES)
def test_the_tour_leads_to_what_is_there(service: str) -> None:
    """Every stop of `docs/TOUR.md` is a function of the file that it names."""
    text = (ROOT / "docs/TOUR.md").read_text()
    part = text.partition(f"\n## {service}:")[2].partition("\n## ")[0]
    stops = re.findall(r"^\d+\. `([^`]+)` `([^`]+)`", part, re.MULTILINE)
    assert len(stops) > 10
    for file, function in stops:
        tree = ast.parse((ROOT / "services" / service / SERVICES[service] / file).read_text())
        names = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
        assert names >= set(function.replace("<locals>.", "").split(".")), (file, function)
