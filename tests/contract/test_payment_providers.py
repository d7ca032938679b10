"""Payment providers are packages that the order-writer finds by name, and the page says truly how to write one."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from msgspec.structs import replace

from order_writer.payments.provider import (
    Approved,
    Declined,
    NoPayment,
    ProviderWrong,
    Unknown,
    Verdict,
    Webhook,
    provider_named,
)
from order_writer.saga.orders import Order
from payment_simulator.journal import Journal
from payment_simulator.provider import JOURNAL, Simulated
from stampede_schemas.identifiers import PurchaseId
from tests.contract.deployment import ROOT
from tests.support.builders.orders import order
from tests.support.payment_contract import keeps_the_contract

PAGE = (ROOT / "docs" / "payment-providers.md").read_text()


def example(language: str) -> str:
    """The page's one block in this language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(block)


async def run(*arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and output of a Python program in an environment with nothing of Stampede but `env`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STAMPEDE_")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=clean | env, cwd=ROOT, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in which the page's package is installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(example("toml"))
    (source / "acme_for_stampede.py").write_text(example("python"))
    offline = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation")
    pip = (sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source))
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(target)


@asynccontextmanager
async def acme_itself(journal: Journal) -> AsyncIterator[str]:
    """Acme's API over HTTP, with the simulator's behaviour and books behind it."""
    behind = Simulated(journal)

    async def charge(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        asked = replace(order(request.match_info["key"]), payment_method="ok")
        if request.method == "PUT":
            told = await request.json()
            assert (told["amount"], told["currency"]) == (8_400, "EUR")
            answer = await behind.authorize(replace(asked, payment_method=told["method"]))
        elif request.method == "DELETE":
            await behind.void(asked.purchase_id, captured=False)
            return web.json_response({"state": "voided"})
        else:
            answer = await behind.query(asked)
        match answer:
            case Approved():
                return web.json_response({"state": "captured"})
            case Declined("not_captured"):
                return web.json_response({}, status=404)
            case Declined(reason):
                return web.json_response({"state": "voided" if reason == "voided" else "refused"})
            case _:
                return web.json_response({}, status=503)

    app = web.Application()
    app.router.add_route("*", "/charges/{key}", charge)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def events(books: Path) -> dict[str, list[str]]:
    """By purchase, what the books say, in order."""
    found: dict[str, list[str]] = {}
    for line in books.read_text().splitlines():
        fact = json.loads(line)
        found.setdefault(fact["purchase_id"], []).append(fact["event"])
    return found


REFUNDED = ["captured", "refunded", "voided"]


async def test_the_package_on_the_page_is_found_and_keeps_the_contract(acme: str, tmp_path: Path) -> None:
    """Installed as it stands there, named by STAMPEDE_PAYMENT: it captures once, refunds once, takes nothing after."""
    books = tmp_path / "payments.jsonl"
    async with acme_itself(Journal(str(books))) as url:
        env = {"STAMPEDE_PAYMENT": "acme", "STAMPEDE_ACME_URL": url, "STAMPEDE_ACME_KEY": "secret"}
        code, said = await run("-m", "tests.support.payment_contract", "ok", "unknown", PYTHONPATH=acme, **env)
    assert code == 0, said
    assert events(books) == dict(zip(said.split(), [REFUNDED, REFUNDED, ["voided"]], strict=True))


async def test_the_simulator_keeps_the_contract(tmp_path: Path) -> None:
    """Found by its name, with its books where its setting says."""
    books = tmp_path / "payments.jsonl"
    provider = provider_named("simulated", {JOURNAL: str(books)}, production=False)
    orders = await keeps_the_contract(provider, "ok", "unknown")
    ids = [each.purchase_id for each in orders]
    assert events(books) == dict(zip(ids, [REFUNDED, REFUNDED, ["voided"]], strict=True))


@pytest.mark.parametrize("fault", ["captures after a void", "answers once", "lost is declined"])
async def test_the_contract_finds_what_breaks_it(fault: str) -> None:
    """A check that every provider passes would say nothing."""

    class Broken(Simulated):
        async def authorize(self, order: Order) -> Verdict:
            answer = await super().authorize(order)
            seen.append(order.purchase_id)
            if fault == "captures after a void" and answer == Declined("voided"):
                return Approved()
            if fault == "answers once" and seen.count(order.purchase_id) > 1:
                return Declined("repeated")
            return Declined("lost") if fault == "lost is declined" and answer == Unknown() else answer

    seen: list[PurchaseId] = []
    with pytest.raises(AssertionError):
        await keeps_the_contract(Broken(), "ok", "unknown")


async def test_a_provider_without_its_settings_stops_the_start(acme: str) -> None:
    """The provider's own sentence, before anything is connected to."""
    code, said = await run("-m", "order_writer", PYTHONPATH=acme, STAMPEDE_PAYMENT="acme")
    assert (code, said) == (1, "order-writer: STAMPEDE_PAYMENT=acme needs the setting 'STAMPEDE_ACME_URL'\n")


def test_a_name_that_nobody_brings_is_refused_with_the_names_that_there_are() -> None:
    """A typing error is seen at once, and what could have been meant."""
    with pytest.raises(ProviderWrong, match=r"STAMPEDE_PAYMENT=simulate: 0 .* 'none', 'simulated', 'webhook'$"):
        provider_named("simulate", {}, production=False)


async def test_a_name_that_two_packages_bring_is_refused(tmp_path: Path) -> None:
    """Which of the two takes the money must not depend on the order of a path."""
    made = tmp_path / "other-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (made / "entry_points.txt").write_text("[stampede.payment_providers]\nsimulated = other:make\nnone = other:make\n")
    code, said = await run("-m", "order_writer", PYTHONPATH=str(tmp_path), STAMPEDE_PAYMENT="simulated")
    assert (code, said.count("\n")) == (1, 1)
    assert "STAMPEDE_PAYMENT=simulated: 2 installed packages" in said


def test_none_and_webhook_are_built_in() -> None:
    """They need no package, in production either."""
    assert isinstance(provider_named("none", {}, production=True), NoPayment)
    assert isinstance(provider_named("webhook", {}, production=True), Webhook)


def test_production_refuses_play_money() -> None:
    """Whatever its name: the provider says itself that it is simulated."""
    with pytest.raises(ProviderWrong, match="play money"):
        provider_named("simulated", {}, production=True)
