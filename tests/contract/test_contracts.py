"""The files that are made of the code say what the code says."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from contracts import __main__ as command
from contracts import messages
from contracts.files import OWNED, drift, rendered
from contracts.messages import json_schemas, message_types
from stampede_schemas.topics import TOPICS
from tests.contract.golden import SCHEMAS
from tests.support.processes.stack import ROOT


def test_the_committed_files_are_those_the_code_makes() -> None:
    """A change of a message, a topic, a route or a problem shows in a committed file."""
    assert drift(ROOT) == []
    assert command.main(["check"]) == 0


def test_a_stale_missing_or_left_over_file_is_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` names each file that differs and writes nothing, and `write` makes it right again."""
    root = ["--root", str(tmp_path)]
    assert command.main(["write", *root]) == 0
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == rendered().keys()
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}" for name in sorted(rendered())]
    (tmp_path / "schemas/json/Reserved.json").unlink()
    (tmp_path / "schemas/json/Gone.json").write_text("{}")
    (tmp_path / "schemas/asyncapi.yaml").write_text("asyncapi: 2.0.0\n")
    (tmp_path / "services/gateway/openapi.json").write_text("{}")
    (tmp_path / "docs/problems/gone.md").write_text("")
    for _ in range(2):
        assert command.main(["check", *root]) == 1
        told = capsys.readouterr().err
        assert re.findall(r"[\w/]+\.(?:json|yaml|md)", told) == [
            "docs/problems/gone.md", "schemas/asyncapi.yaml", "schemas/json/Gone.json", "schemas/json/Reserved.json",
            "services/gateway/openapi.json",
        ]  # fmt: skip
    assert command.main(["write", *root]) == 0
    assert drift(tmp_path) == []
    assert command.main(["check", *root]) == 0


def test_folders_of_made_files_hold_nothing_else() -> None:
    """What lies there and is not made of the code is left over."""
    there = {str(path.relative_to(ROOT)) for pattern in OWNED for path in (ROOT / pattern).parent.iterdir()}
    assert there <= rendered().keys()


def test_schemas_are_valid_json_schema_and_their_references_resolve() -> None:
    """Every exported file is a 2020-12 schema whose references name other exported files."""
    schemas = json_schemas()
    assert message_types().keys() <= schemas.keys()
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        for reference in references(schema):
            assert reference.removesuffix(".json") in schemas


def test_asyncapi_describes_every_topic_once() -> None:
    """A channel per topic with its partitions, an operation per writer, and no dangling reference."""
    document = yaml.safe_load(messages.rendered()["schemas/asyncapi.yaml"])
    assert document["asyncapi"] == "3.0.0"
    channels = {channel["address"]: channel for channel in document["channels"].values()}
    assert channels.keys() == {topic.name for topic in TOPICS}
    for topic in TOPICS:
        assert channels[topic.name]["bindings"]["kafka"]["partitions"] == topic.partitions
    writers = {(name.split(".", 1)[0], f"stampede.{name.split('.', 1)[1]}") for name in document["operations"]}
    assert writers == {(writer, topic.name) for topic in TOPICS for writer in topic.writers}
    for reference in references(document):
        if reference.startswith("./"):
            assert (SCHEMAS / reference).is_file()
        else:
            found: Any = document
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]


def references(node: Any) -> list[str]:
    """Every `$ref` below a node."""
    if isinstance(node, list):
        return [found for each in node for found in references(each)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    return own + [found for value in node.values() for found in references(value)]
