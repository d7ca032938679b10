"""The descriptions of the HTTP interface: committed, valid, complete, and with an example for every answer."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from contracts import http
from gateway.http.problems import KINDS
from tests.support.processes.stack import ROOT

FILES = ("openapi.json", "openapi-admin.json")
BUYERS = {
    "GET /v1/products", "GET /v1/products/{product_id}", "GET /v1/sale/events", "POST /v1/purchases",
    "GET /v1/purchases", "GET /v1/purchases/{purchase_id}", "GET /v1/purchases/{purchase_id}/events",
    "POST /v1/purchases/{purchase_id}/cancel", "POST /v1/payments/webhook",
}  # fmt: skip
OPERATORS = {
    "POST /admin/v1/products", "PATCH /admin/v1/products/{product_id}", "POST /admin/v1/products/{product_id}/restock",
    "POST /admin/v1/products/{product_id}/{action}", "POST /admin/v1/products/{product_id}/cancel-orders",
    "GET /admin/v1/orders", "POST /admin/v1/orders/{purchase_id}/cancel",
}  # fmt: skip


def description(name: str) -> dict[str, Any]:
    """A committed description."""
    found: dict[str, Any] = json.loads((ROOT / "services/gateway" / name).read_text())
    return found


def operations(name: str) -> dict[str, dict[str, Any]]:
    """By method and path."""
    paths = description(name)["paths"]
    return {f"{method.upper()} {path}": told for path, methods in paths.items() for method, told in methods.items()}


def test_the_committed_descriptions_and_pages_are_those_of_the_code() -> None:
    """After a change of routes or problems: `python -m contracts write`."""
    made = http.rendered()
    pages = {f"docs/problems/{page.name}" for page in (ROOT / "docs/problems").iterdir()}
    assert {f"services/gateway/{name}" for name in FILES} | pages == made.keys()
    for name, content in made.items():
        assert (ROOT / name).read_bytes() == content, name


@pytest.mark.parametrize("name", FILES)
def test_the_description_is_valid(name: str) -> None:
    """By the rules of OpenAPI."""
    validate(description(name))


def test_every_route_of_the_contract_is_there() -> None:
    """And no other."""
    assert operations("openapi.json").keys() == BUYERS
    assert operations("openapi-admin.json").keys() == OPERATORS


@pytest.mark.parametrize("name", FILES)
def test_every_operation_says_who_may_and_has_a_name_of_its_own(name: str) -> None:
    """Names make clients' methods; an operation without security is open by intention."""
    told = operations(name)
    ids = [operation["operationId"] for operation in told.values()]
    assert len(set(ids)) == len(ids)
    schemes = description(name)["components"]["securitySchemes"].keys()
    for operation in told.values():
        assert operation["tags"]
        assert operation["description"]
        assert {scheme for wanted in operation["security"] for scheme in wanted} <= schemes
    open_to_all = {where for where, operation in told.items() if not operation["security"]}
    assert open_to_all == ({path for path in BUYERS if "products" in path or "sale" in path} & told.keys())


@pytest.mark.parametrize("name", FILES)
def test_every_answer_has_an_example_that_is_what_it_says(name: str) -> None:
    """Bodies by their schemas; every no is a problem document of a known kind."""
    whole = description(name)
    kinds = {f"/problems/{kind.slug}": kind for kind in KINDS}
    for where, operation in operations(name).items():
        for status, answer in operation["responses"].items():
            for media, content in answer.get("content", {}).items():
                if media == "text/event-stream":
                    continue
                examples = [content["example"]] if "example" in content else []
                examples += [example["value"] for example in content.get("examples", {}).values()]
                assert examples, (where, status)
                schema = content["schema"] | {"components": whole["components"]}
                for example in examples:
                    Draft202012Validator(schema).validate(example)
                    if media == "application/problem+json":
                        assert str(kinds[example["type"]].status) == status == str(example["status"])
