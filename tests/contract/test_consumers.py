"""What no consumer of ours may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes.stack import ROOT

CROSSING = {"pause", "resume", "seek"}


def _calls(path: Path) -> Iterator[str]:
    """Where a module calls a method that a librdkafka consumer has under this name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CROSSING:
            yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}"


def test_no_consumer_is_paused_resumed_or_sought() -> None:
    """One that crosses an `assign` inside librdkafka leaves a partition unread for ever, without any error.

    confluentinc/librdkafka#5591; seen here after some hundred times `pause`, `assign`, `resume` on 64 partitions, and
    once in a sale: 85 decisions of one partition never reached Postgres. `assign` alone did it 1,186 times.
    """
    modules = [path for area in ("services", "libs") for path in ROOT.glob(f"{area}/*/*/**/*.py")]
    clients = [path for path in modules if "confluent_kafka" in path.read_text()]
    assert len(clients) > 3
    assert [call for path in clients for call in _calls(path)] == []
