"""S13 with real replays in processes of their own: a fold that is not pure is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replay.__main__ import main
from tests.support.builders.replay import exported_sale


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An exported sale that holds."""
    return exported_sale(tmp_path)


def test_a_sound_sale_replays_alike_everywhere(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two replays in different time zones and with different hash seeds say the same."""
    assert main(["check", str(file), "--rule", "S13", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(rule["verdict"], rule["looked_at"]) for rule in said["rules"]] == [("holds", 2)]


@pytest.mark.parametrize(
    ("impurity", "found"),
    [
        ("StockTable.digest = lambda self, was=StockTable.digest: was(self) + os.environ['TZ']", "one replay says"),
        ("open('left-behind', 'w').close()", "left-behind"),
        ("os._exit(3)", "ended with 3"),
    ],
)
def test_a_fold_that_is_not_pure_is_found(file: Path, tmp_path: Path, impurity: str, found: str) -> None:
    """S13: a table that depends on the time zone, a replay that writes, a replay that dies."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif 'TZ' in os.environ:\n    from inventory.table import StockTable\n    {impurity}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TZ"} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "replay", "check", str(file), "--rule", "S13", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert found in json.loads(done.stdout)["rules"][0]["first"][0]["what"]
