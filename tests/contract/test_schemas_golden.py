"""Whatever was written once can be read for ever, and what is written today reads back as the same bytes."""

import json
from typing import Any, Literal, get_args

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource

from contracts.messages import json_schemas, message_types
from stampede_schemas.codec import (
    decode_command,
    decode_decisions,
    decode_envelope,
    decode_order_event,
    decode_request,
    decode_snapshot,
    encode,
    encode_decisions,
    encode_requests,
    split_requests,
)
from stampede_schemas.decisions import AnyDecision, Envelope, Ignored, Rejected
from stampede_schemas.identifiers import Millis, WriterEpoch
from stampede_schemas.order_commands import AnyCommand
from stampede_schemas.order_events import AnyOrderEvent
from stampede_schemas.requests import AnyRequest
from stampede_schemas.snapshots import AnySnapshotRecord
from tests.contract.golden import Golden, all_golden, golden

REQUESTS, DECISIONS, COMMANDS, EVENTS, SNAPSHOTS = (
    {message.__name__ for message in get_args(union)}
    for union in (AnyRequest, AnyDecision, AnyCommand, AnyOrderEvent, AnySnapshotRecord)
)


def answer(*decisions: bytes) -> Envelope:
    """The envelope of a record that holds these decisions."""
    return Envelope(0, 0, WriterEpoch("f" * 32), 0, Millis(0), msgspec.Raw(b"[" + b",".join(decisions) + b"]"))


def rewritten(golden: Golden) -> bytes:
    """The message read by the code that reads it in the services, and written again."""
    value, kind = golden.value, golden.type
    if kind == "RequestBatch":
        return encode_requests([decode_request(raw) for raw in split_requests(value)])
    if kind == "DecisionsRecord":
        envelope = decode_envelope(value)
        assert envelope is not None
        decisions = decode_decisions(envelope)
        return encode_decisions(
            envelope.source_offset,
            envelope.source_crc,
            envelope.load,
            envelope.start,
            envelope.appended_at_ms,
            decisions,
        )
    if kind in REQUESTS:
        return encode(decode_request(value))
    if kind in DECISIONS:
        return encode(decode_decisions(answer(value))[0])
    if kind in COMMANDS:
        return encode(decode_command(value))
    if kind in EVENTS:
        return encode(decode_order_event(value))
    assert kind in SNAPSHOTS, f"no reader for {kind}"
    return encode(decode_snapshot(value))


def newest() -> dict[str, int]:
    """The newest version of each type that has golden files."""
    versions: dict[str, int] = {}
    for each in all_golden():
        versions[each.type] = max(each.version, versions.get(each.type, 0))
    return versions


@pytest.mark.parametrize("golden", all_golden(), ids=lambda golden: f"{golden.type}.v{golden.version}")
def test_every_version_ever_written_is_still_read(golden: Golden) -> None:
    """A golden message is read by today's code; of the newest version it is also written as the same bytes."""
    written = rewritten(golden)
    if golden.version == newest()[golden.type]:
        assert written == golden.value


@pytest.mark.parametrize("golden", all_golden(), ids=lambda golden: f"{golden.type}.v{golden.version}")
def test_a_newer_writer_may_add_fields(golden: Golden) -> None:
    """Unknown fields are ignored: a reader of today survives an optional field of tomorrow."""
    document = json.loads(golden.value) | {"field_of_tomorrow": {"nested": [1, 2.5, None]}}
    extended = golden._replace(value=json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())
    assert rewritten(extended) == rewritten(golden)


def test_older_decisions_are_lifted_among_newer_ones() -> None:
    """One record may hold versions of several writers; each decision is read by its own version, in order."""
    older, newer = golden("Ignored", 1), golden("Ignored", 2)
    first, rejected, second = decode_decisions(answer(older, golden("Rejected"), newer))
    assert isinstance(first, Ignored)
    assert isinstance(second, Ignored)
    assert isinstance(rejected, Rejected)
    assert (first.v, first.mismatch, second.mismatch) == (2, False, True)
    assert msgspec.structs.replace(first, mismatch=True) == second


@pytest.mark.parametrize(
    "unknown",
    [
        golden("Ignored", 1).replace(b'"answered"', b'"answered_otherwise"'),
        golden("Ignored", 2).replace(b'"v":2', b'"v":3'),
        golden("Rejected").replace(b'"Rejected"', b'"Rejected","v":2'),
        golden("Ignored", 1).replace(b'"Ignored"', b'"Ignored","v":1').replace(b"sneaker", b"\xff"),
        golden("Ignored", 1).replace(b'"Ignored"', b'"Ignored","v":[1]'),
        b'{"v":1}',
        b"7",
    ],
)
def test_a_decision_of_no_known_version_stops_the_reader(unknown: bytes) -> None:
    """Also beside decisions that need a lift: skipping one would fork the readers."""
    with pytest.raises(msgspec.DecodeError):
        decode_decisions(answer(golden("Ignored", 1), unknown))


def test_a_version_above_the_first_is_always_written() -> None:
    """What is absent means version 1; so nothing without its version may be read as the second."""
    silent = golden("Ignored", 2).replace(b'"v":2,', b"")
    (read,) = decode_decisions(answer(silent))
    assert isinstance(read, Ignored)
    assert not read.mismatch
    assert b'"v":2' in encode(Ignored(v=2, reason="same", product_id=read.product_id))


def test_every_message_type_has_a_golden_file() -> None:
    """A new message type, or a version above the newest golden one, needs its golden file in the same change."""
    versions = {name: _version(message) for name, message in message_types().items()}
    assert newest() == versions


@pytest.mark.parametrize("golden", all_golden(), ids=lambda golden: f"{golden.type}.v{golden.version}")
def test_golden_messages_satisfy_the_published_schema(golden: Golden) -> None:
    """The exported JSON Schema accepts what the services write: readers outside may validate by it."""
    if golden.version != newest()[golden.type]:
        return
    validator(golden.type).validate(json.loads(golden.value))


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_the_published_schema_refuses_what_the_reader_refuses(name: str) -> None:
    """Without any one of its required fields a request is valid neither for the schema nor for the reader."""
    schema = json_schemas()[name]
    document = next(json.loads(golden.value) for golden in all_golden() if golden.type == name)
    for missing in schema["required"]:
        poorer = {key: value for key, value in document.items() if key != missing}
        assert not validator(name).is_valid(poorer), missing
        with pytest.raises(ValueError, match=r"not_a_request|unknown_type"):
            decode_request(json.dumps(poorer).encode())


def validator(name: str) -> jsonschema.protocols.Validator:
    """A validator for one message; schemas find each other by file name."""
    contents = {f"{each}.json": schema for each, schema in json_schemas().items()}
    registry: Registry[Any] = Registry().with_resources(
        [(file, Resource.from_contents(schema)) for file, schema in contents.items()]
    )
    return jsonschema.Draft202012Validator({"$ref": f"{name}.json"}, registry=registry)


def _version(message: type) -> int:
    """The version a type is written with now; types without `v` have one shape for the life of the log."""
    versions = {field.name: field.type for field in msgspec.structs.fields(message)}.get("v", Literal[1])
    (version,) = get_args(versions)
    assert isinstance(version, int)
    return version
