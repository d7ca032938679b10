"""One purchase on a watched stack: sent over HTTP, reserved, paid and confirmed."""

import ast
import asyncio
import contextlib
import tempfile
from itertools import groupby
from pathlib import Path

import asyncpg
import httpx

from gateway.auth.ids import IdentityKey, Subject
from stampede_schemas.identifiers import ProductId
from tests.support.processes.stack import ROOT, LocalStack, eventually, stack
from tests.tour.stays import FOLDER, Stay, stays

SERVICES = {"gateway": "gateway", "inventory": "inventory", "order-writer": "order_writer"}
PRODUCT, USER, KEY = ProductId("tour-tea"), "tour-ann", "tour-key-of-one-purchase"
IDENTITY_KEY = "an identity key for the tour, and for nothing else"
CONFIRMED_S = 20.0


def follow() -> dict[str, list[Stay]]:
    """By service, the stays of the purchase, in order."""
    purchase_id = IdentityKey(IDENTITY_KEY).purchase_id(Subject("header", USER), "POST", "/v1/purchases", PRODUCT, KEY)
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="stampede-tour-")))
        (folder / "canaries").write_text(f"{purchase_id} {KEY}")
        modules = {service: f"tests.tour.builds.{package}" for service, package in SERVICES.items()}
        settings = {"STAMPEDE_IDENTITY_KEY": IDENTITY_KEY, FOLDER: str(folder)}
        running = opened.enter_context(stack(settings, environment={"PYTHONPATH": str(ROOT)}, modules=modules))
        _buy(running)
        eventually(lambda: asyncio.run(_status(running, purchase_id)) == "confirmed", CONFIRMED_S, "the confirmation")
        eventually(lambda: _told(folder), CONFIRMED_S, "the order's event at the gateway")
        return {service: stays(folder, package) for service, package in SERVICES.items()}


def _told(folder: Path) -> bool:
    return any(stay.function == "Projection.fold_order" for stay in stays(folder, "gateway"))


def visits(stops: list[Stay]) -> list[str]:
    """The files that the purchase comes to, one for each time that it changes from another."""
    return [file for file, _ in groupby(stop.file for stop in stops)]


def sentence_of(service: str, stay: Stay) -> str:
    """The first sentence of the function's docstring; empty if it has none."""
    root = ROOT / "services" / service / SERVICES[service]
    body: list[ast.stmt] = ast.parse((root / stay.file).read_text()).body
    told = ""
    for name in stay.function.split("."):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                told, body = ast.get_docstring(node) or "", node.body
                break
    return " ".join(told.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def _buy(running: LocalStack) -> None:
    where = running.endpoints
    listing = {"product_id": PRODUCT, "name": "Tea", "unit_price_minor": 100, "currency": "EUR", "stock": 3}
    operator = {"Authorization": f"Bearer {where.admin_key}"}
    listed = httpx.post(f"{where.admin}/admin/v1/products", json=listing, headers=operator)
    assert listed.status_code == 201, listed.text
    buyer = {"X-User-Id": USER, "Idempotency-Key": KEY}
    answer = httpx.post(f"{where.gateway[0]}/v1/purchases", json={"product_id": PRODUCT, "quantity": 1}, headers=buyer)
    assert answer.status_code == 202, answer.text


async def _status(running: LocalStack, purchase_id: str) -> object:
    connection = await asyncpg.connect(running.postgres)
    try:
        return await connection.fetchval("SELECT status FROM purchases WHERE purchase_id = $1", purchase_id)
    finally:
        await connection.close()
