"""No task of an order-writer dies unseen: the first that ends unasked ends the process, and a sentence names it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devstack.ports import anywhere, is_free
from tests.support.builders.orders import Installation, installation
from tests.support.processes.stack import LocalStack, eventually

TASKS = (
    "advance what is applied",
    "cancel products",
    "check Postgres and Kafka",
    "consume commands",
    "consume decisions",
    "end holds",
    "guard the progress",
    "handle pending commands",
    "lease due payments",
    "pay",
    "renew leases",
    "send the outbox",
    "store answers",
)
END_S_MAX = 20.0


@pytest.fixture(scope="module")
def one_place(quiet_servers: LocalStack) -> Iterator[Installation]:
    """For all tests here: they write no record."""
    with asyncio.Runner() as runner:
        made = installation(quiet_servers.kafka, quiet_servers.postgres)
        yield runner.run(made.__aenter__())
        runner.run(made.__aexit__(None, None, None))


@contextmanager
def struck(place: Installation, said: Path, **task: str) -> Iterator["subprocess.Popen[bytes]"]:
    """An order-writer that was ready, and whose task has been cancelled; what it says is in the file."""
    port = next(port for port in anywhere() if is_free(port))
    env = {
        "STAMPEDE_KAFKA": place.kafka,
        "STAMPEDE_POSTGRES": place.postgres,
        "STAMPEDE_PAYMENT": "simulated",
        "STAMPEDE_OPS_PORT": str(port),
    }
    command = [sys.executable, "-m", "tests.support.faults.mortal_task", "order_writer"]
    with said.open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | env | task, stdout=log, stderr=log)
    try:

        def ready() -> bool:
            assert process.poll() is None, said.read_text()
            try:
                return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5))
            except OSError:
                return False

        eventually(ready, 60, "the order-writer to be ready")
        process.send_signal(signal.SIGUSR1)
        yield process
    finally:
        process.kill()
        process.wait()


def test_these_are_all_tasks(one_place: Installation, tmp_path: Path) -> None:
    """The list above is whole."""
    with struck(one_place, tmp_path / "said") as process:
        names = re.compile(rf"^({'|'.join(TASKS)})$", re.MULTILINE)
        eventually(
            lambda: set(names.findall((tmp_path / "said").read_text())) == set(TASKS), 5, "the names of the tasks"
        )
        lines = (tmp_path / "said").read_text().splitlines()
        assert not [line for line in lines if line[:1] not in "{" and line not in TASKS]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("task", TASKS)
def test_an_order_writer_ends_with_each_of_its_tasks(one_place: Installation, tmp_path: Path, task: str) -> None:
    """Also with those that would only return: what restarts it learns that it has to."""
    with struck(one_place, tmp_path / "said", MORTAL_TASK=task) as process:
        assert process.wait(END_S_MAX) == 1
    assert (tmp_path / "said").read_text().splitlines()[-1] == f"order-writer: the task that has to {task} has ended"
