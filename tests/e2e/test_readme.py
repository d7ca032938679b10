"""The README's commands, as a newcomer types them."""

import re
import subprocess
from pathlib import Path

from tests.support.stack import ROOT, LocalStack

README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    """The shell blocks of the README, in order."""
    return re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def test_the_curl_lines_of_the_readme_sell_a_unit_and_take_it_back(whole: LocalStack, tmp_path: Path) -> None:
    """List a product, buy, watch, cancel: the block runs as it is written, on this stack."""
    block = next(block for block in blocks() if "curl" in block)
    assert "make up " in block
    lines = block.replace("make up ", ": ").replace(
        ".venv/bin/devstack env", f"{ROOT}/.venv/bin/devstack env --dir {whole.layout.root}"
    )
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout
    assert '"available":3' in said
    watched = said[said.index("retry: ") :]
    assert "event: confirmed" in watched
    ended = watched[watched.index('"status":"confirmed"') :]
    assert ended.index('"status":"released"') < ended.index('"reason":"cancelled"')


def test_every_make_target_the_readme_names_exists() -> None:
    """A command in the README is a command of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) - {"sure"} <= targets


def test_every_page_the_readme_points_to_exists() -> None:
    """No dead link on the first page."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
