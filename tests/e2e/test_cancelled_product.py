"""A product is cancelled and sold again on a whole stack: the later sale stands, however late the command is read."""

import asyncio
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import pytest

from devstack import processes
from replay import judge
from stampede_client import Client
from tests.chaos.verdict import at_rest, collect
from tests.support.processes.sale import listing
from tests.support.processes.servers import fetch
from tests.support.processes.stack import LocalStack, eventually, stack


@pytest.fixture(scope="module")
def shop() -> Iterator[LocalStack]:
    """A stack of its own: its database is lost."""
    with stack() as running:
        yield running


def operator(shop: LocalStack, path: str, json: object = None) -> None:
    """What an operator asks of products is done, or in the log."""
    found = shop.endpoints
    headers = {"Authorization": f"Bearer {found.admin_key}"}
    answer = httpx.post(f"{found.admin}/admin/v1/products{path}", json=json, headers=headers, timeout=10)
    assert answer.is_success, answer.text


def buy(shop: LocalStack, product_id: str, count: int) -> list[str]:
    """So many buyers get a unit each; their purchases."""
    bought = []
    for _ in range(count):
        with Client(*shop.endpoints.gateway, user=uuid4().hex) as buyer:
            bought.append(buyer.buy(product_id, payment_method="ok").purchase_id)
    return bought


def cancelled(shop: LocalStack) -> None:
    """Wait until the cancellation has been carried out and nothing is on its way."""
    done = "SELECT FROM product_cancellations WHERE done_at IS NOT NULL"
    eventually(lambda: len(asyncio.run(fetch(shop.postgres, done))) == 1, what="the cancellation is done")
    assert asyncio.run(at_rest(shop))[0] == []


def ends(shop: LocalStack) -> dict[str, str]:
    """How each purchase ended, by the rows."""
    rows = asyncio.run(fetch(shop.postgres, "SELECT purchase_id, status, reason, refund FROM purchases"))
    return {row["purchase_id"]: " ".join(filter(None, (row["status"], row["reason"], row["refund"]))) for row in rows}


def lose_the_database(shop: LocalStack) -> None:
    """Postgres is lost, and brought back as docs/runbooks/postgres-lost.md says."""
    shop.scale(gateway=0, order_writer=0)
    dsn = urlsplit(shop.postgres)
    server, name = urlunsplit(dsn._replace(path="/postgres")), dsn.path[1:]
    asyncio.run(fetch(server, f"DROP DATABASE {name} WITH (FORCE)"))
    asyncio.run(fetch(server, f"CREATE DATABASE {name}"))
    addresses = processes.Addresses(shop.kafka, shop.postgres, shop.redis)
    for command in ("migrate", "recover"):
        environment = processes.one_shot_environment(shop.layout, addresses, {})
        subprocess.run([*processes.PYTHON, "order_writer", command], env=environment, check=True)
    shop.scale(gateway=1, order_writer=1)


def test_a_later_sale_outlives_the_cancellation_of_the_one_before(shop: LocalStack) -> None:
    """Two are sold; the order-writer is away while an operator closes, cancels and opens again, and three are sold. It
    comes back; later Postgres is lost. Both times the two are released and refunded, and the three stand."""
    tea = f"tea-{uuid4().hex[:8]}"
    operator(shop, "", listing(tea, 10))
    first = buy(shop, tea, 2)
    assert asyncio.run(at_rest(shop))[0] == []
    shop.scale(order_writer=0)
    for action in ("close", "cancel-orders", "open"):
        operator(shop, f"/{tea}/{action}")
    second = buy(shop, tea, 3)
    shop.scale(order_writer=1)
    expected = dict.fromkeys(first, "released cancelled_by_operator done") | dict.fromkeys(second, "confirmed none")
    cancelled(shop)
    assert ends(shop) == expected
    lose_the_database(shop)
    cancelled(shop)
    # The provider alone knows the refunds from before.
    assert ends(shop) == {name: end.replace("done", "none") for name, end in expected.items()}
    found = list(judge.judge(collect(shop)))
    assert {one.name: one.first for one in found if one.violations} == {}
    assert {one.name: one.looked for one in found}["S22"] == 5  # two releases, their rows, and the command
