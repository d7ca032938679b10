"""The README's shell blocks, typed as they stand."""

import re
import subprocess
from pathlib import Path

from tests.support.processes.stack import ROOT, LocalStack

README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    """The shell blocks, in order."""
    return re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def buying() -> str:
    """The block in which somebody buys."""
    return next(block for block in blocks() if "curl" in block)


def typed(block: str, running: LocalStack, folder: Path) -> str:
    """What is printed when the block is typed in `folder`, on a stack that is up already; every line must succeed."""
    devstack, place = f"{ROOT}/.venv/bin/devstack", f"--dir {running.layout.root}"
    assert "make up " in block
    lines = block.replace("make up ", ": ").replace(".venv/bin/devstack env", f"{devstack} env {place}")
    lines = re.sub(r"make -s token USER=(\w+)", rf"{devstack} token {place} --user \1", lines)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines], capture_output=True, text=True, timeout=60, cwd=folder, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def sold_and_taken_back(said: str) -> bool:
    """Whether the block told of a unit that was sold, watched, cancelled and given back."""
    watched = said[said.index("retry: ") :]
    ended = watched[watched.index('"status":"confirmed"') :]
    given_back = ended.index('"status":"released"') < ended.index('"reason":"cancelled"')
    return '"available":3' in said and "event: confirmed" in watched and given_back
