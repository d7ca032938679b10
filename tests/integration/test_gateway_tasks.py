"""No task of a gateway dies unseen: the first that ends unasked ends the process, with a sentence that names it."""

import re
import signal
from pathlib import Path

import pytest

from tests.support.builders.gateway import GatewayProcess
from tests.support.processes.sale import Sale
from tests.support.processes.stack import eventually

TASKS = (
    "batch requests",
    "follow the log",
    "keep keys fresh",
    "keep limits fresh",
    "keep views fresh",
    "make frames of the sale",
    "measure the event loop",
    "probe where decisions end",
    "query ends of partitions",
    "serve admin",
    "serve http",
    "serve reports of commands",
    "serve reports of requests",
)
END_S_MAX = 20.0


class MortalGateway(GatewayProcess):
    """A gateway whose tasks can be killed."""

    program = ("-m", "tests.support.faults.mortal_task", "gateway")


def struck(sale: Sale, folder: Path, **task: str) -> MortalGateway:
    """A gateway that was ready, and whose task has been cancelled."""
    gateway = MortalGateway(sale.stack, folder, **task)
    gateway.await_ready()
    gateway.process.send_signal(signal.SIGUSR1)
    return gateway


def test_these_are_all_tasks(sale: Sale, tmp_path: Path) -> None:
    """The list above is whole."""
    gateway = struck(sale, tmp_path)
    try:
        names = re.compile(rf"^({'|'.join(TASKS)})$", re.MULTILINE)
        eventually(lambda: set(names.findall(gateway.said())) == set(TASKS), 5, "the names of the tasks")
        others = [line for line in gateway.said().splitlines() if line[:1] not in "{" and line not in TASKS]
        assert not others
    finally:
        assert gateway.close() == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_gateway_ends_with_each_of_its_tasks(sale: Sale, tmp_path: Path, task: str) -> None:
    """Not orderly, and not silently: what restarts it learns that it has to."""
    gateway = struck(sale, tmp_path, MORTAL_TASK=task)
    try:
        assert gateway.process.wait(END_S_MAX) == 1
    finally:
        gateway.process.kill()
    assert gateway.said().splitlines()[-1] == f"gateway: the task that has to {task} has ended"
