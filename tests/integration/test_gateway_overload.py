"""A gateway under load: it ends without breaking a promise, and says so when it can keep none."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import psutil
import pytest

from eventlog.__main__ import provision
from stampede_schemas.codec import split_requests
from stampede_schemas.topics import REQUESTS
from tests.support.builders.gateway import ADMIN_KEY, GatewayProcess
from tests.support.processes.inventory import InventoryProcess, Log
from tests.support.processes.sale import Sale, buy, order
from tests.support.processes.stack import components, eventually

BUYERS = 24


@pytest.fixture(scope="module")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sale]:
    """Components of this module's own: it stops the broker."""
    folder = tmp_path_factory.mktemp("overload")
    with components() as stack:
        provision(stack.kafka, 1)
        environment = {"STAMPEDE_POSTGRES": stack.postgres}
        subprocess.run([sys.executable, "-m", "order_writer", "migrate"], env=environment, check=True)
        inventory, gateway = InventoryProcess(stack.kafka, folder), GatewayProcess(stack, folder)
        try:
            gateway.await_ready()
            inventory.await_ready()
            yield Sale(stack, gateway, inventory, folder)
        finally:
            gateway.close()
            inventory.close()


class Buyers:
    """Threads that buy as fast as they can until a gateway refuses connections; what they were told."""

    def __init__(self, gateway: GatewayProcess, product: str) -> None:
        self._gateway, self._product = gateway, product
        self.accepted: set[str] = set()
        self.broken: list[str] = []
        self.last_ones = 0
        self.told_to_leave = threading.Event()

    def run(self, number: int) -> None:
        """One buyer, on one connection as long as it lasts."""
        with httpx.Client(base_url=self._gateway.url, headers={"X-User-Id": f"u{number}"}, timeout=15) as client:
            while True:
                headers = {"Idempotency-Key": uuid4().hex}
                try:
                    answer = client.post("/v1/purchases", json=order(self._product), headers=headers)
                except httpx.ConnectError:
                    return  # it listens no more: the load balancer would have gone elsewhere
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                    return
                if answer.status_code == 202:
                    self.accepted.add(answer.headers["location"].rpartition("/")[2])
                elif answer.status_code not in {429, 503}:
                    self.broken.append(answer.text)
                if answer.headers.get("connection") == "close":
                    self.last_ones += 1
                    return  # as a client does that looks at readiness before it connects again


def test_sigterm_under_load_breaks_no_promise(sale: Sale, tmp_path: Path) -> None:
    """Every request is answered, none is reset; each connection is told; what was promised is logged."""
    gateway = GatewayProcess(sale.stack, tmp_path)
    gateway.await_ready()
    product = sale.product(1_000_000, per_buyer_limit=1_000)
    with sale.buyer() as ann:
        eventually(lambda: ann.get(f"/v1/products/{product}").status_code == 200)
    buyers = Buyers(gateway, product)
    with ThreadPoolExecutor(BUYERS) as pool:
        running = [pool.submit(buyers.run, number) for number in range(BUYERS)]
        eventually(lambda: len(buyers.accepted) > 200, 30.0, "a load")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(25) == 0, gateway.said()
        for one in running:
            one.result()
    assert buyers.broken == []
    assert buyers.last_ones == BUYERS
    assert "Traceback" not in gateway.said()
    log = Log(sale.stack.kafka)
    records = (record for partition in range(REQUESTS.partitions) for record in log.records(REQUESTS.name, partition))
    logged = {
        msgspec.json.decode(raw).get("purchase_id") for record in records for raw in split_requests(record.value or b"")
    }
    assert buyers.accepted <= logged


def test_reads_give_way_to_purchases(sale: Sale, tmp_path: Path) -> None:
    """With eight reads waiting, the next is told to come back; buyers and operators are served."""
    gateway = GatewayProcess(sale.stack, tmp_path, STAMPEDE_READS_MAX="8")
    try:
        gateway.await_ready()
        product = sale.product(10)
        with sale.buyer("ann", gateway) as ann, ThreadPoolExecutor(12) as pool:
            location = buy(ann, product, wait=5).headers["location"]
            waits = [pool.submit(lambda: ann.get(location, params={"wait": 5}).status_code) for _ in range(12)]
            eventually(lambda: sum(one.done() for one in waits) == 4, what="four refusals, eight that wait")
            refused = ann.get(location)
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
            assert refused.headers["retry-after"] in {"1", "2", "3"}
            assert not any(one.done() and one.result() == 200 for one in waits), "eight are still waiting"
            assert buy(ann, product).status_code == 202
            assert ann.get("/readyz").status_code == 200
            headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
            assert httpx.get(f"{gateway.admin_url}/admin/v1/orders", headers=headers).status_code == 200
            assert [one.result() for one in waits].count(200) == 8
    finally:
        assert gateway.close() == 0


def test_a_log_that_does_not_answer_makes_the_gateway_unready(sale: Sale) -> None:
    """While its buyer still waits, with the reason; it is ready again when the broker is."""
    product = sale.product(100)
    broker = psutil.Process(sale.stack.endpoints.processes["kafka"][0]["pid"])
    with sale.buyer("ann") as ann:
        assert buy(ann, product).status_code == 202
        broker.suspend()
        try:
            with ThreadPoolExecutor(1) as pool:
                stuck = pool.submit(buy, ann, product)
                with sale.buyer("bob") as bob:
                    why = "has not acknowledged a record"  # of a purchase that is given up, it says something else
                    eventually(lambda: why in bob.get("/readyz").text, what="unreadiness for this reason")
                    assert bob.get("/readyz").status_code == 503
                    assert bob.get("/livez").status_code == 200
                answer = stuck.result()
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/outcome-unknown")
            assert answer.json()["outcome"] == "unknown"
        finally:
            broker.resume()
        eventually(lambda: ann.get("/readyz").status_code == 200, 30.0, "readiness")
        eventually(lambda: buy(ann, product).status_code == 202, 30.0, "a purchase")
