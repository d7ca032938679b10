"""No task of an inventory worker dies unseen, none of Faust's either: the process ends, and a sentence says why."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventlog.__main__ import provision
from inventory.faust_tasks import LOOK_EVERY_S, MISSED_LOOKS_MAX, NAMES
from stampede_schemas.topics import partition_of
from tests.support.processes.inventory import InventoryProcess, Log, listing, purchase, worker
from tests.support.processes.stack import components, eventually

OURS = ("find what the stream left out", "serve delivery reports", "watch Faust", "watch the topics")
# Tasks of Faust that are not in the list: their owner notices, or begins them anew.
OWNED = {
    "",  # a future's own
    "AIOKafkaConnection._read",
    "Event.wait",
    "Fetcher._proc_fetch_request",
    "GroupCoordinator._commit_refresh_routine",
    "GroupCoordinator._heartbeat_routine",
    "ServiceThread._serve",
    "ThrowableQueue.get",
    "long_lived_tasks.<locals>.endless",
    "run.<locals>.until_signalled",
}
AGENT = "Agent._execute_actor"
# What else is killed, and how the sentence begins.
ELSE = {
    "GroupCoordinator._commit_refresh_routine": "Faust's task GroupCoordinator._commit_refresh_routine has ended",
    "GroupCoordinator._heartbeat_routine": "Faust's task GroupCoordinator._heartbeat_routine has ended",
    "a bug in Faust": "Faust has crashed: LookupError('a bug')",
    "an error for the user of aiokafka": "Faust has crashed: KafkaError('no')",
    "the end of the agent's stream": f"Faust's task {AGENT} has ended",
    "the end of the consumer's thread": "Faust's task ",
}
END_S_MAX = 20.0


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """A broker of this module's own: its `decisions` is written by workers only."""
    with components() as running:
        provision(running.kafka, 1)
        yield running.kafka


@contextmanager
def struck(kafka: str, folder: Path, number: signal.Signals, **task: str) -> Iterator[InventoryProcess]:
    """A worker that was ready, and has been sent the signal."""
    with worker(kafka, folder, module="tests.support.faults.mortal_faust", **task) as running:
        running.await_ready()
        running.process.send_signal(number)
        yield running


def said(folder: Path) -> str:
    """Everything."""
    return (folder / "inventory-0.log").read_text()


def test_these_are_all_tasks(kafka: str, tmp_path: Path) -> None:
    """The lists are whole: what runs for more than a moment is in one of them."""
    with struck(kafka, tmp_path, signal.SIGUSR1) as running:
        looks: list[set[str]] = []
        for number in range(1, 4):
            running.process.send_signal(signal.SIGUSR2)
            eventually(lambda number=number: said(tmp_path).count("runs: _done") == number, 5, "the list")  # type: ignore[misc]
            looks.append(set(re.findall(r"^runs: (.*)$", said(tmp_path).split("runs: _done")[-2], re.MULTILINE)))
        assert set.intersection(*looks) - OWNED == NAMES
        assert all(f"\n{task}\n" in f"\n{said(tmp_path)}" for task in OURS)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(END_S_MAX) == 0


@pytest.mark.parametrize("task", OURS)
def test_a_worker_ends_with_each_of_its_tasks(kafka: str, tmp_path: Path, task: str) -> None:
    """Not silently: what restarts it learns that it has to."""
    with struck(kafka, tmp_path, signal.SIGUSR1, MORTAL_TASK=task) as running:
        assert running.process.wait(END_S_MAX) == 1
    assert said(tmp_path).splitlines()[-1] == f"inventory inventory-0 stops: the task that has to {task} has ended"


@pytest.mark.parametrize("task", [*sorted(NAMES - {AGENT}), *ELSE])
def test_a_worker_ends_with_each_task_of_faust(kafka: str, tmp_path: Path, task: str) -> None:
    """Cancelled, which Faust does not say; crashed; or with an error that aiokafka keeps for a user who never asks."""
    with struck(kafka, tmp_path, signal.SIGUSR2, MORTAL_FAUST=task) as running:
        assert running.process.wait(END_S_MAX) == 1
    sentence = ELSE.get(task, f"Faust's task {task} has ended")
    assert said(tmp_path).splitlines()[-1].startswith(f"inventory inventory-0 stops: {sentence}")


def test_faust_begins_a_cancelled_agent_anew(kafka: str, tmp_path: Path) -> None:
    """That is no end: nothing is left out, and the worker goes on."""
    log = Log(kafka)
    with struck(kafka, tmp_path, signal.SIGUSR2, MORTAL_FAUST=AGENT) as running:
        log.ask([listing("tea", 10)])
        log.ask([purchase("tea")])
        log.flush()
        log.await_answers(partition_of("tea"), 20)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(LOOK_EVERY_S * (MISSED_LOOKS_MAX + 2))
