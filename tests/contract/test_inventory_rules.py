"""The inventory's rules are installed and imported without its worker: `replay` folds a file with them."""

import subprocess
import sys

import pytest

from deploy.docker.parts import own_packages

RULES = ("domain", "table", "loading", "effects", "protocol")
# Imports the module named first; everything named after it cannot be imported.
PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[2:]))
__import__(sys.argv[1])
"""
WORKER_ONLY = ("faust", "mode", "aiokafka", "confluent_kafka", "telemetry", "service", "prometheus_client", "pydantic")


def imported(module: str) -> "subprocess.CompletedProcess[str]":
    """An interpreter that imports this module without the packages of the worker."""
    command = [sys.executable, "-c", PROGRAM, module, *WORKER_ONLY]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rules", RULES)
def test_rules_need_no_package_of_the_worker(rules: str) -> None:
    """Neither Faust nor a Kafka client is there, and they are imported all the same."""
    done = imported(f"inventory.{rules}")
    assert done.returncode == 0, done.stderr


def test_the_worker_does_need_them() -> None:
    """So the test above would fail if a rule imported one of them."""
    assert "ModuleNotFoundError" in imported("inventory.app").stderr


def test_installing_the_rules_brings_no_package_of_the_worker() -> None:
    """Without the extra `worker` the inventory needs the messages and the reader of the log alone."""
    own = own_packages()
    wanted, found = ["stampede-inventory"], set[str]()
    while wanted:
        name = wanted.pop()
        found.add(name)
        wanted += [need.name for need in own[name][1][""] if need.name not in found] if name in own else []
    assert found == {"stampede-inventory", "stampede-eventlog", "stampede-schemas", "msgspec"}
