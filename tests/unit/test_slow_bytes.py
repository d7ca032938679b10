"""No bytes make a reader slow: whatever a record holds, reading it takes a time that grows as its size does.

A worker reads on the loop that decides for all its partitions, so a record that takes a minute stops twelve of them.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from replay import contract
from stampede_schemas import codec
from stampede_schemas.codec import (
    NESTING_MAX,
    RECORD_BYTES_MAX,
    UnreadableMessage,
    decode_command,
    decode_decisions,
    decode_envelope,
    decode_order_event,
    decode_request,
    decode_snapshot,
    split_requests,
)

CPU_S_MAX = 1.0  # a quadratic reader takes minutes, a linear one at most a fifth
CLOSED = b"}" * (NESTING_MAX + 1)  # so many that a reader counts how deep they are


def filled(piece: bytes, head: bytes = b"", tail: bytes = b"") -> bytes:
    """As much of `piece` as a record of `requests` may hold."""
    return head + piece * ((RECORD_BYTES_MAX - len(head) - len(tail)) // len(piece)) + tail


SHAPES = {
    "a text of quotation marks without an end": filled(b'\\"', b'{"requests":["', CLOSED),
    "a text of quotation marks and a backslash": filled(b'\\"', b'{"requests":["', CLOSED + b"\\"),
    "backslashes": filled(b"\\", b'{"requests":["', CLOSED),
    "quotation marks": filled(b'"', b'{"requests":[', CLOSED),
    "opening brackets": filled(b"[", b'{"requests":', CLOSED),
    "closing brackets": filled(b"]", b'{"requests":'),
    "brackets": filled(b"[]", b'{"requests":[', CLOSED),
    "empty objects": filled(b"{},", b'{"requests":[', b"{}]}"),
    "digits": filled(b"9", b'{"requests":[{"type":"RestockRequested","quantity":', b"}]}"),
    "decimals": filled(b"9", b'{"requests":[{"type":"RestockRequested","quantity":0.', b"e999}]}"),
    "keys": filled(b'"quantity":1,', b'{"requests":[{"type":"RestockRequested",', b'"v":1}]}'),
    "escaped letters": filled(b"\\u0061", b'{"requests":[{"type":"', b'"}]}'),
    "halves of surrogates": filled(b"\\ud83d", b'{"requests":[{"type":"', b'"}]}'),
    "a long id": filled(b"a", b'{"requests":[{"type":"PurchaseRequested","purchase_id":"', b'"}]}'),
    "a long name": filled(b"a", b'{"requests":[{"type":"ProductListRequested","name":"', b'\\n"}]}'),
    "spaces": filled(b" ", b'{"requests":[', b"{}]}" + CLOSED),
}


def requests(value: bytes) -> None:
    """As the inventory reads them."""
    with suppress(UnreadableMessage):
        for raw in split_requests(value):
            with suppress(UnreadableMessage):
                decode_request(raw)


def replayed(value: bytes) -> None:
    """As the checker reads them."""
    split = contract.split(value)
    for raw in [] if isinstance(split, str) else split:
        contract.read_request(raw)


def decisions(value: bytes) -> None:
    """As every reader of `decisions` reads them: the envelope is checked, and what is in it."""
    whole = b'{"source_offset":0,"source_crc":0,"load":"","start":0,"appended_at_ms":0,"decisions":' + value + b"}"
    if (envelope := decode_envelope(whole)) is not None:
        with suppress(msgspec.DecodeError):
            decode_decisions(envelope)
    contract.read_envelope(whole)


def others(value: bytes) -> None:
    """As the readers of the other topics do."""
    for decode in (decode_command, decode_order_event, decode_snapshot):
        with suppress(msgspec.DecodeError):
            decode(value)


@pytest.mark.parametrize("read", [requests, replayed, decisions, others], ids=lambda read: str(read.__name__))
@pytest.mark.parametrize("shape", SHAPES)
def test_reading_takes_no_longer_than_the_bytes_are_many(shape: str, read: Callable[[bytes], Any]) -> None:
    """The largest record there can be."""
    began = time.process_time()
    read(SHAPES[shape])
    took = time.process_time() - began
    assert took < CPU_S_MAX, f"{took:.1f} s"


@pytest.mark.parametrize("reads", [codec._too_deep, lambda value: contract._depth(value) > NESTING_MAX])
def test_a_text_without_an_end_is_read_once(reads: Callable[[bytes], bool]) -> None:
    """What stands in it is no nesting; what stands before it is."""
    text = b'"' + b'\\"' * 1_000 + b"[" * 1_000
    deep = b"[" * (NESTING_MAX + 1) + b"]" * (NESTING_MAX + 1)
    assert not reads(text + CLOSED)
    assert reads(deep + text)
    assert reads(deep + text + b"\\")
    assert not reads(b'{"a":"' + deep + b'\\\\","b":"\\""}' + b"[]" * NESTING_MAX)
