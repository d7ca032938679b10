"""One trace a purchase, from HTTP to the row and through the compensation, written by four processes."""

import asyncio
import json
import subprocess
import sys
from typing import Any

from devstack.load_generator import LoadGenerator, Sale
from tests.support.processes.stack import LocalStack, eventually

STEPS = {
    ("gateway", "POST /v1/purchases"),
    ("gateway", "send requests"),
    ("inventory", "decide"),
    ("order-writer", "write order"),
    ("order-writer", "pay"),
    ("order-writer", "release order"),
}


def spans(running: LocalStack) -> list[dict[str, Any]]:
    """All spans of all processes."""
    files = running.layout.spans.glob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


async def test_a_declined_purchase_is_one_trace_through_all_services(whole: LocalStack) -> None:
    """Every step of it carries one trace id, and `make trace` shows them as a waterfall."""
    journal = await LoadGenerator(whole.endpoints, Sale(units=25, buyers=80, declined_share=0.5, seed=3)).run()
    purchase_id = next(a.purchase_id for a in journal.attempts if a.outcome == "released")

    def steps() -> list[dict[str, Any]]:
        found = spans(whole)
        traces = {span["trace_id"] for span in found if span["attributes"].get("purchase_id") == purchase_id}
        assert len(traces) <= 1
        return [span for span in found if span["trace_id"] in traces]

    def complete() -> bool:
        found = steps()
        decided = sum(span["name"] == "decide" for span in found)
        return {(span["service"], span["name"]) for span in found} >= STEPS and decided == 2

    await asyncio.to_thread(eventually, complete, 20, "every step, the release's decision included, in one trace")
    parents = {span["span_id"]: span["parent_id"] for span in steps()}
    assert all(parent is None or parent in parents for parent in parents.values())
    shown = await asyncio.to_thread(waterfall, whole, purchase_id)
    assert all(name in shown for _, name in STEPS)


def waterfall(running: LocalStack, purchase_id: str) -> str:
    """What `make trace` prints."""
    command = [sys.executable, "-m", "devstack", "trace", "--id", purchase_id, f"--dir={running.layout.root}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
