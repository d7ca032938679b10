"""The messages as files: JSON Schema per message and AsyncAPI. Types come from the code, topics from the registry."""

import json
from typing import Annotated, Any, get_args

import msgspec
import yaml
from msgspec import Meta

from stampede_schemas.codec import RECORD_BYTES_MAX, REQUESTS_PER_RECORD_MAX
from stampede_schemas.decisions import AnyDecision
from stampede_schemas.requests import AnyRequest, RequestBatch
from stampede_schemas.topics import DEAD_LETTERS, ORDERS, TOPICS, Topic

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_FORMAT = "application/schema+json;version=2020-12"

# In the code a batch holds its requests undecoded, so that one bad request stays one; on the wire they are requests.
_WireBatch = msgspec.defstruct(
    RequestBatch.__name__,
    [("requests", Annotated[list[AnyRequest], Meta(min_length=1, max_length=REQUESTS_PER_RECORD_MAX)])],
    namespace={"__doc__": RequestBatch.__doc__},
    frozen=True,
)
_WIRE_FORM: dict[type, type] = {RequestBatch: _WireBatch}

_CLOUD_EVENT = {
    "ce_specversion": "CloudEvents' version, 1.0",
    "ce_id": "purchase_id/version: the same for every repeat of an event",
    "ce_source": "who says it",
    "ce_type": "stampede.<message>.v<version>",
    "ce_subject": "purchase_id",
    "ce_time": "RFC 3339, UTC",
    "content-type": "application/json",
}
_LETTER = {
    "reason": "the stable word for why it can never be acted on",
    "topic": "where it stood",
    "partition": "where it stood",
    "offset": "where it stood; a request or decision has its `index` in the record as well",
    "first_seen_ms": "since when it lies here; of a command, since when it is in the log",
    "size": "only of a record too large for a letter: its bytes; the value is then the beginning of it",
    "sha256": "with `size`: of the whole value, in hex",
    "kept": "with `size`: how many bytes of it are the value",
    "headers_left_out": "how many headers of the record were too large to be kept",
}
_OPTIONAL = {"size", "sha256", "kept", "headers_left_out"}
_HEADERS: dict[str, dict[str, str]] = {ORDERS.name: _CLOUD_EVENT, DEAD_LETTERS.name: _LETTER}
_ABOUT: dict[str, str] = {
    "RequestBatch": f"At most {RECORD_BYTES_MAX} bytes.",
    "DeadLetter": "The bytes that could not be acted on, unchanged, or the beginning of very many; the record key is "
    "their position.",
}


def messages_of(topic: Topic) -> tuple[type, ...]:
    """The types that can be the value of a record of `topic`; none where values are any bytes."""
    if topic.message is None:
        return ()
    return get_args(topic.message) or (topic.message,)  # a union of types, or one type


def message_types() -> dict[str, type]:
    """Every type that is ever written as a message of its own or inside a batch, by name."""
    records = [message for topic in TOPICS for message in messages_of(topic)]
    return {message.__name__: message for message in (*records, *get_args(AnyRequest), *get_args(AnyDecision))}


def json_schemas() -> dict[str, dict[str, Any]]:
    """A JSON Schema (2020-12) per message type and shared part, by name; they refer to one another by file name."""
    wanted = [_WIRE_FORM.get(message, message) for message in message_types().values()]
    _, components = msgspec.json.schema_components(wanted, ref_template="{name}.json")
    return {name: {"$schema": DIALECT, **schema} for name, schema in sorted(components.items())}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document: a channel per topic with its configuration, a `send` operation per writer."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for topic in TOPICS:
        key = topic.name.removeprefix("stampede.")
        names = [message.__name__ for message in messages_of(topic)] or ["DeadLetter"]
        channels[key] = {
            "address": topic.name,
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
            "bindings": {"kafka": _channel_binding(topic)},
        }
        messages |= {name: _message(name, topic) for name in names}
        for writer in topic.writers:
            operations[f"{writer}.{key}"] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{key}"},
                "summary": f"{writer} writes {topic.name}",
                "messages": [{"$ref": f"#/channels/{key}/messages/{name}"} for name in names],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Stampede",
            "version": "1.0.0",
            "description": "Topics and messages of Stampede. Generated: `python -m contracts write`.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _channel_binding(topic: Topic) -> dict[str, Any]:
    config: dict[str, Any] = {key: int(v) if v.lstrip("-").isdigit() else v for key, v in topic.config.items()}
    config["cleanup.policy"] = topic.config["cleanup.policy"].split(",")
    return {
        "topic": topic.name,
        "partitions": topic.partitions,
        "topicConfiguration": config,
        "bindingVersion": "0.5.0",
    }


def _message(name: str, topic: Topic) -> dict[str, Any]:
    message: dict[str, Any] = {"name": name, "title": name}
    if name in _ABOUT:
        message["description"] = _ABOUT[name]
    if headers := _HEADERS.get(topic.name):
        properties = {header: {"type": "string", "description": text} for header, text in headers.items()}
        message["headers"] = {
            "type": "object",
            "properties": properties,
            "required": [h for h in headers if h not in _OPTIONAL],
        }
    if topic.message is None:
        return message | {"contentType": "application/octet-stream"}
    return message | {"payload": {"schemaFormat": SCHEMA_FORMAT, "schema": {"$ref": f"./json/{name}.json"}}}


def rendered() -> dict[str, bytes]:
    """Every file, by its path in the repository."""
    texts = {f"json/{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in json_schemas().items()}
    document = yaml.safe_dump(asyncapi(), sort_keys=False, width=110, allow_unicode=True)
    texts["asyncapi.yaml"] = f"# Generated by `python -m contracts write`.\n{document}"
    return {f"schemas/{name}": text.encode() for name, text in texts.items()}
