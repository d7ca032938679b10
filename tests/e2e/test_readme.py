"""The README's commands, as a newcomer types them."""

import re
from pathlib import Path

from tests.support.processes.stack import ROOT, LocalStack
from tests.support.readme import README, buying, sold_and_taken_back, typed


def test_the_curl_lines_of_the_readme_sell_a_unit_and_take_it_back(whole: LocalStack, tmp_path: Path) -> None:
    """List a product, buy, watch, cancel: the block runs as it is written, on this stack."""
    assert sold_and_taken_back(typed(buying(), whole, tmp_path))


def test_every_make_target_the_readme_names_exists() -> None:
    """A command in the README is a command of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]*)", README)) - {"sure"} <= targets


def test_every_page_the_readme_points_to_exists() -> None:
    """No dead link on the first page."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
