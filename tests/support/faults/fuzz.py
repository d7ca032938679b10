"""Schemathesis over a real gateway: what its descriptions say is tried out, and much that they forbid."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes.stack import ROOT

SHOWN_MAX = 500  # of a line: bodies can be long
HANG_S_MAX = 7.0  # the longest wait a caller can ask for is five seconds
WEBHOOK_SECRET = "the-secret-of-payment-reports-in-tests"
# Endless by design, and tested by themselves: a fuzzer would listen for as long as they talk.
STREAMS = ("/v1/sale/events", "/v1/purchases/{purchase_id}/events")
DESCRIPTIONS = {"buyers": "openapi.json", "operators": "openapi-admin.json"}


@dataclass(frozen=True)
class Fuzzed:
    """How many requests were sent, and what Schemathesis said of them; `clean`: it found nothing."""

    cases: int
    clean: bool
    said: str


def fuzz(
    face: str, url: str, token: str, folder: Path, *, cases_per_route: int, phases: str, wait_s: float, seed: int = 1
) -> Fuzzed:
    """Try one listener with `token`. Every check is on; a request without an answer after HANG_S_MAX is a failure."""

    options = [option for path in STREAMS for option in ("--exclude-path", path)] if face == "buyers" else []
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(ROOT / "services/gateway" / DESCRIPTIONS[face])),
            *("--url", url, "--header", f"Authorization: Bearer {token}", *options),
            *("--max-examples", str(cases_per_route), "--phases", phases, "--seed", str(seed), "--workers", "1"),
            *("--generation-database", "none", "--no-shrink", "--no-color", "--continue-on-failure"),
            *("--max-response-time", str(HANG_S_MAX), "--request-timeout", str(2 * HANG_S_MAX)),
        ],
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "tests.support.faults.fuzz_hooks",
            "FUZZ_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "PYTHONPATH": str(ROOT),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=wait_s,
        check=False,
    )
    said = ran.stdout + ran.stderr
    told = "\n".join(line[:SHOWN_MAX] for line in said.splitlines())
    return Fuzzed(_cases(said), ran.returncode == 0, told)


def _cases(said: str) -> int:
    found = re.search(r"([\d,]+) generated", said)
    return int(found[1].replace(",", "")) if found else 0
