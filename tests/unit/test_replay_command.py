"""`replay` as a program: verdicts by exit code, a table, JSON, and one sentence when there is no verdict."""

import ast
import json
from pathlib import Path

import pytest

from replay import salefile
from replay.__main__ import main
from replay.rules import RULES, claim
from tests.support.builders.replay import SmallSale, exported_sale, rewrite
from tests.support.builders.requests import listing, purchase

ROOT = Path(__file__).resolve().parents[2]
IN_PROCESS = [
    f"--rule={rule.NAME}" for rule in RULES if rule.NAME != "S13"
]  # S13 starts processes: test_replay_purity.py
SHARED = {"stampede_schemas", "eventlog", "inventory", "order_writer", "gateway", "ratelimit", "devstack"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An exported sale that holds."""
    return exported_sale(tmp_path)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The same, oversold by one."""
    small = SmallSale()
    small.ask(listing(stock=1))
    small.ask(purchase("a"), purchase("b", "bob"))
    evidence = small.evidence()
    rewrite(evidence, 1, 1, type="Reserved", available_after=-1)
    salefile.write(tmp_path / "broken.jsonl", evidence)
    return tmp_path / "broken.jsonl"


def test_a_sound_file_exits_with_0(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs more than a file is said to be not looked at, and does not count."""
    assert main(["check", str(file), "--json", *IN_PROCESS]) == 0
    said = json.loads(capsys.readouterr().out)
    verdicts = {rule["rule"]: rule["verdict"] for rule in said["rules"]}
    assert said["verdict"] == "holds"
    assert {name for name, verdict in verdicts.items() if verdict == "not looked at"} == {
        "S2", "S5", "S7", "S8", "S10", "S11", "S12", "S19", "S21",
    }  # fmt: skip
    assert main(["check", str(file), *IN_PROCESS]) == 0
    assert "VERDICT: HOLDS" in capsys.readouterr().out


def test_a_violation_exits_with_1_and_names_the_first_place(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the table and in JSON."""
    assert main(["check", str(broken), "--json", "--rule", "S1", "--rule", "S4"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [rule["first"][0]["at"] for rule in said["rules"]] == ["requests/0/1/1", "requests/0/1/1"]
    assert main(["check", str(broken), *IN_PROCESS]) == 1
    assert "VERDICT: VIOLATED (S1" in capsys.readouterr().out


def test_no_verdict_exits_with_2_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there, that is something else, a stack that does not run, a rule nobody knows."""
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    for arguments in (
        ["check", str(tmp_path / "nowhere")],
        ["check", str(other)],
        ["check", "--endpoints", str(tmp_path / "endpoints.json")],
        ["verify", "--endpoints", str(tmp_path / "endpoints.json")],
        ["check", str(other), "--rule", "S99"],
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.err.startswith("replay: ")
        assert len(said.err.splitlines()) == 1


def test_the_invariants_are_listed() -> None:
    """docs/INVARIANTS.md names every rule with its file and in its words."""
    listed = (ROOT / "docs/INVARIANTS.md").read_text()
    for rule in RULES:
        assert rule.check.__module__.startswith("replay.rules.s")
        assert f"| {rule.NAME} | {claim(rule)} | `{rule.check.__module__.rpartition('.')[2]}.py`" in listed


def test_the_checker_shares_no_decision_code() -> None:
    """Of the services and the shared message code it knows names of topics and the Kafka client; S12 alone folds."""
    allowed = {"stampede_schemas.topics", "eventlog.kafka", "eventlog.reader"}  # of the reader, the exception alone
    package = ROOT / "tools/replay/replay"
    for file in package.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        foreign = {name for name in found if name.split(".")[0] in SHARED} - allowed
        assert not foreign or file.name == "s12_same_tables.py", (file.name, foreign)
        readers = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "eventlog.reader"]
        assert {alias.name for node in readers for alias in node.names} <= {"LogBroken"}, file.name
