"""The published contract files say what the code says."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stampede_schemas import __main__ as command
from stampede_schemas.export import drift, export, json_schemas, message_types, rendered
from stampede_schemas.topics import TOPICS
from tests.contract.golden import SCHEMAS


def test_the_committed_files_are_those_the_code_generates() -> None:
    """Nobody can change a message or a topic without the change showing in the committed contract."""
    assert drift(SCHEMAS) == []
    assert command.main(["export", "--check"]) == 0


def test_a_stale_missing_or_left_over_file_is_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`export --check` names each file that differs, and `export` makes it right again."""
    export(tmp_path)
    assert drift(tmp_path) == []
    (tmp_path / "json" / "Reserved.json").unlink()
    (tmp_path / "json" / "Gone.json").write_text("{}")
    (tmp_path / "asyncapi.yaml").write_text("asyncapi: 2.0.0\n")
    assert command.main(["export", "--check", "--to", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert re.findall(r"[\w/]+\.(?:json|yaml)", told) == ["asyncapi.yaml", "json/Gone.json", "json/Reserved.json"]
    assert command.main(["export", "--to", str(tmp_path)]) == 0
    assert drift(tmp_path) == []


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
    document = yaml.safe_load(rendered()["asyncapi.yaml"])
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
