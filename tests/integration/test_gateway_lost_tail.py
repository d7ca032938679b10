"""A broker that loses what it had acknowledged: the repeat is appended again, and the loss does not stay silent."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx

from eventlog.__main__ import provision
from stampede_schemas.topics import REQUESTS, partition_of
from tests.support.builders.gateway import ADMIN_KEY, GatewayProcess
from tests.support.processes.inventory import Log, worker
from tests.support.processes.sale import buy, listing
from tests.support.processes.stack import LocalStack, components, eventually

TEA = "tea"


def segment(stack: LocalStack) -> Path:
    """The only log file of the product's partition."""
    (found,) = (stack.layout.root / "kafka").rglob(f"{REQUESTS.name}-{partition_of(TEA)}/*.log")
    return found


def lose_tail(stack: LocalStack, size: int) -> None:
    """Power loss: the broker ends, and its file is again as long as it once was."""
    pid = stack.status()["kafka"]["pid"]
    stack.kill("kafka", signal.SIGSTOP)
    os.truncate(segment(stack), size)
    stack.kill("kafka", signal.SIGKILL)
    stack.await_restart("kafka", pid)


def lost(gateway: GatewayProcess) -> int:
    """How many purchases the gateway counts as lost."""
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.ops}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return int(float(text.partition("\nstampede_purchases_lost ")[2].split()[0]))


def test_an_acknowledged_purchase_that_the_broker_lost_is_appended_again_by_its_repeat(tmp_path: Path) -> None:
    """It was never decided: counted, logged as an error, decided after the repeat, and sold once."""
    with components() as stack:
        provision(stack.kafka, 1)
        subprocess.run(
            [sys.executable, "-m", "order_writer", "migrate"], env={"STAMPEDE_POSTGRES": stack.postgres}, check=True
        )
        gateway = GatewayProcess(stack, tmp_path)
        try:
            gateway.await_ready()
            with worker(stack.kafka, tmp_path) as running:
                running.await_ready()
                operator = {"Authorization": f"Bearer {ADMIN_KEY}"}
                body = listing(TEA, 1)
                listed = httpx.post(f"{gateway.admin_url}/admin/v1/products", json=body, headers=operator, timeout=10)
                assert listed.status_code == 201, listed.text
            size = segment(stack).stat().st_size
            with httpx.Client(base_url=gateway.url, headers={"X-User-Id": "ann"}, timeout=20) as ann:
                first = buy(ann, TEA, "my-key")
                assert first.status_code == 202
                assert segment(stack).stat().st_size > size
                lose_tail(stack, size)
                # It is believed until a second has gone and the broker says where the log ends.
                eventually(
                    lambda: buy(ann, TEA, "my-key").content == first.content and lost(gateway) == 1, 30, "a repeat"
                )
                with worker(stack.kafka, tmp_path):
                    state = f"/v1/purchases/{first.json()['purchase_id']}"
                    eventually(lambda: ann.get(state).json().get("status") == "reserved", 30, "its decision")
                assert lost(gateway) == 1
                assert "lost 1 acknowledged purchases" in gateway.said()
                requests = Log(stack.kafka).records(REQUESTS.name, partition_of(TEA))
                assert sum((record.value or b"").count(b"PurchaseRequested") for record in requests) == 1
        finally:
            gateway.close()
