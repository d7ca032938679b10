"""Whatever bytes stand in the log, reading them ends in a message or in one word for why not."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inventory.domain import decide
from inventory.table import StockTable
from stampede_schemas.codec import (
    NESTING_MAX,
    RECORD_BYTES_MAX,
    REQUESTS_PER_RECORD_MAX,
    UnreadableMessage,
    decode_command,
    decode_decisions,
    decode_envelope,
    decode_order_event,
    decode_request,
    decode_snapshot,
    source_crc,
    split_requests,
)
from stampede_schemas.decisions import Unreadable, UnreadableReason
from stampede_schemas.identifiers import Millis
from stampede_schemas.requests import PurchaseRequested, ReleaseRequested
from stampede_schemas.topics import PARTITIONS, partition_of
from tests.contract.golden import all_golden, golden

PURCHASE: dict[str, Any] = json.loads(golden("PurchaseRequested"))
DEEP = b"[" * 100_000 + b"]" * 100_000


def batch(*requests: object) -> bytes:
    """The value of a `requests` record that holds these."""
    return json.dumps({"requests": requests}).encode()


def purchase(**fields: object) -> bytes:
    """A purchase request with some fields changed."""
    return json.dumps(PURCHASE | fields).encode()


WHOLE_RECORDS: dict[str, tuple[bytes | None, UnreadableReason]] = {
    "a tombstone": (None, "empty"),
    "no bytes": (b"", "not_json"),
    "an empty batch": (batch(), "empty"),
    "random bytes": (b"\x80\x02\xff", "not_json"),
    "truncated": (batch(PURCHASE)[:-3], "not_json"),
    "trailing junk": (batch(PURCHASE) + b"x", "not_json"),
    "bad UTF-8": (b'{"requests": ["\xff\xfe"', "not_json"),
    "deeper than any reader goes": (b'{"requests": ' + DEEP + b"}", "not_json"),
    "an array": (b"[]", "not_a_request"),
    "a scalar": (b"17", "not_a_request"),
    "no requests": (b"{}", "not_a_request"),
    "requests of the wrong kind": (b'{"requests": 7}', "not_a_request"),
    "one request too many": (batch(*[PURCHASE] * (REQUESTS_PER_RECORD_MAX + 1)), "too_many"),
    "one byte too many": (batch(PURCHASE).ljust(RECORD_BYTES_MAX + 1), "too_large"),
}
SINGLE_REQUESTS: dict[str, tuple[bytes, UnreadableReason]] = {
    "null": (b"null", "not_a_request"),
    "a number beyond every float": (b"1e999", "not_a_request"),
    "NaN": (b"NaN", "not_json"),
    "no type": (b'{"v": 1}', "not_a_request"),
    "a type nobody ever wrote": (purchase(type="PurchaseDreamt"), "unknown_type"),
    "a decision": (golden("Reserved"), "unknown_type"),
    "a version of tomorrow": (purchase(v=2), "unknown_version"),
    "a version as text": (purchase(v="1"), "not_a_request"),
    "quantity 0": (purchase(quantity=0), "not_a_request"),
    "quantity -1": (purchase(quantity=-1), "not_a_request"),
    "quantity 1.5": (purchase(quantity=1.5), "not_a_request"),
    "quantity true": (purchase(quantity=True), "not_a_request"),
    "quantity as text": (purchase(quantity="1"), "not_a_request"),
    "quantity 2^63": (purchase(quantity=2**63), "not_a_request"),
    "an empty id": (purchase(purchase_id=""), "not_a_request"),
    "an id of 97 characters": (purchase(buyer_id="x" * 97), "not_a_request"),
    "769 bytes": (purchase().ljust(769), "too_large"),
    **{
        f"a NUL in {field}": (purchase(**{field: "a\0b"}), "not_a_request")
        for field in ("purchase_id", "buyer_id", "product_id", "payment_method", "fingerprint", "traceparent")
    },
    "a lone surrogate": (b'{"type": "PurchaseRequested", "purchase_id": "\\ud800"}', "not_json"),
    "deeper than any reader goes": (b'{"type": "PurchaseRequested", "x": ' + DEEP + b"}", "not_json"),
}


@pytest.mark.parametrize(("value", "reason"), WHOLE_RECORDS.values(), ids=WHOLE_RECORDS.keys())
def test_an_unreadable_record_says_why(value: bytes | None, reason: UnreadableReason) -> None:
    """A record that cannot be split into requests gives one stable word."""
    with pytest.raises(UnreadableMessage) as caught:
        split_requests(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("raw", "reason"), SINGLE_REQUESTS.values(), ids=SINGLE_REQUESTS.keys())
def test_an_unreadable_request_says_why(raw: bytes, reason: UnreadableReason) -> None:
    """One request that cannot be read gives one stable word."""
    with pytest.raises(UnreadableMessage) as caught:
        decode_request(raw)
    assert caught.value.reason == reason


def test_what_only_looks_like_a_nul_is_readable() -> None:
    """A backslash before it makes it six letters; and what was reserved with a NUL once can still be given back."""
    decoded = decode_request(purchase(purchase_id="a\\u0000", x="\0"))
    assert isinstance(decoded, PurchaseRequested)
    assert decoded.purchase_id == "a\\u0000"
    back = json.loads(golden("ReleaseRequested")) | {"purchase_id": "a\0b"}
    assert isinstance(decode_request(json.dumps(back).encode()), ReleaseRequested)


def test_a_request_in_a_foreign_partition_is_unreadable() -> None:
    """The one reason that needs more than the bytes: the partition is not that of its product."""
    request = decode_request(purchase())
    foreign = (partition_of(request.product_id) + 1) % PARTITIONS
    assert decide(StockTable(foreign), request, Millis(0)) == Unreadable(reason="wrong_partition")


def test_every_reason_is_shown_above() -> None:
    """A new reason needs its example here."""
    shown = {reason for _, reason in (*WHOLE_RECORDS.values(), *SINGLE_REQUESTS.values())}
    assert shown | {"wrong_partition"} == set(get_args(UnreadableReason))


def test_one_bad_request_leaves_its_neighbours_readable() -> None:
    """Requests are decoded one by one: what stands before and after a bad one is read."""
    before, bad, after = split_requests(batch(PURCHASE, {"type": "PurchaseRequested"}, PURCHASE))
    with pytest.raises(UnreadableMessage):
        decode_request(bad)
    assert decode_request(before) == decode_request(after) == decode_request(purchase())


def standing(deep: int, read: Callable[[], object]) -> object:
    """What a reader says whose caller stands `deep` calls deep: the messages, or why not."""
    if deep:
        return standing(deep - 1, read)
    try:
        return read()
    except UnreadableMessage as error:
        return error.reason


@pytest.mark.parametrize("nested", [NESTING_MAX - 3, NESTING_MAX - 2, 850, 950, 990])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_how_deep_a_request_may_nest_does_not_depend_on_who_reads_it(nested: int, opening: bytes) -> None:
    """A decoder follows brackets as far as the stack of its caller allows; two workers must not differ by that."""
    closing = b"]" if opening == b"[" else b"}"
    retire = b'{"type":"ProductRetireRequested","request_id":"r","product_id":"p","x":'
    value = b'{"requests":[' + retire + opening * nested + b"1" + closing * nested + b"}]}"

    def read() -> object:
        return [decode_request(raw) for raw in split_requests(value)]

    said = [standing(deep, read) for deep in (0, 60, 250)]
    assert said[0] == said[1] == said[2]
    assert (said[0] == "not_json") == (nested + 3 > NESTING_MAX)


def test_brackets_in_texts_and_in_full_batches_are_no_nesting() -> None:
    """500 releases have a thousand brackets, and a text may hold any."""
    release = json.loads(golden("ReleaseRequested"))
    assert len(split_requests(batch(*[release] * REQUESTS_PER_RECORD_MAX))) == REQUESTS_PER_RECORD_MAX
    assert len(split_requests(batch(*[PURCHASE | {"payment_method": '[{"\\'}] * 400))) == 400


def test_the_limits_themselves_are_legal() -> None:
    """500 requests, and 512 KiB exactly, are read."""
    assert len(split_requests(batch(*[0] * REQUESTS_PER_RECORD_MAX))) == REQUESTS_PER_RECORD_MAX
    assert len(split_requests(batch(PURCHASE).ljust(RECORD_BYTES_MAX))) == 1


def test_the_last_of_two_equal_keys_counts_for_every_reader() -> None:
    """Duplicate keys in JSON have one meaning, so that two readers cannot differ."""
    doubled = purchase().replace(b'"quantity": 2', b'"quantity": 1, "quantity": 2')
    assert decode_request(doubled) == decode_request(purchase())


def test_the_crc_is_that_of_the_bytes() -> None:
    """CRC-32 as everyone computes it, so that a tool outside can check it; a tombstone counts as empty."""
    assert source_crc(b"123456789") == 0xCBF43926
    assert source_crc(None) == source_crc(b"") == 0


@pytest.mark.parametrize(
    "value", [None, b"", b"null", b"[]", b"\xff", DEEP, b'{"source_offset": 0}', golden("DecisionsRecord")[:-1]]
)
def test_an_unreadable_envelope_is_nothing_at_all(value: bytes | None) -> None:
    """Such a record is void for every reader, and none of them raises."""
    assert decode_envelope(value) is None


def test_unknown_content_in_a_readable_envelope_stops_the_reader() -> None:
    """Skipping it would fork the readers, so it raises instead."""
    envelope = decode_envelope(golden("DecisionsRecord").replace(b'"Reserved"', b'"ReservedDifferently"'))
    assert envelope is not None
    with pytest.raises(msgspec.DecodeError):
        decode_decisions(envelope)


def damaged() -> st.SearchStrategy[bytes]:
    """Golden messages cut short, with a stretch replaced by any bytes, or glued together."""
    whole = st.sampled_from([each.value for each in all_golden()])
    cut = st.tuples(whole, st.integers(0, 400), st.integers(0, 40), st.binary(max_size=12)).map(
        lambda t: t[0][: t[1]] + t[3] + t[0][t[1] + t[2] :]
    )
    return st.one_of(cut, st.tuples(whole, whole).map(b"".join))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ODD_FIELDS = st.dictionaries(st.sampled_from([*PURCHASE, "v", "reservation"]), JSON, max_size=3)
ANY_VALUE = st.one_of(
    st.binary(max_size=300),
    damaged(),
    JSON.map(lambda value: json.dumps(value).encode()),
    ODD_FIELDS.map(lambda fields: json.dumps(PURCHASE | fields).encode()),
    ODD_FIELDS.map(lambda fields: batch(PURCHASE, PURCHASE | fields)),
)


def reason_for(read: Callable[[bytes | msgspec.Raw], Any], value: bytes | msgspec.Raw) -> str | None:
    """Why `value` is unreadable, None if it is not. Any other exception goes through."""
    try:
        read(value)
    except UnreadableMessage as error:
        return error.reason
    return None


def requests_in(value: bytes) -> list[msgspec.Raw]:
    """The requests of a record that can be split, none of one that cannot."""
    return split_requests(value) if reason_for(split_requests, value) is None else []


@settings(max_examples=300, deadline=None)
@given(ANY_VALUE)
def test_no_bytes_break_a_reader_of_requests(value: bytes) -> None:
    """Splitting and decoding raise UnreadableMessage with a known reason, and never anything else."""
    reasons = {reason_for(split_requests, value), reason_for(decode_request, value)}
    reasons |= {reason_for(decode_request, raw) for raw in requests_in(value)}
    assert reasons <= {None, *get_args(UnreadableReason)}


@settings(max_examples=300, deadline=None)
@given(ANY_VALUE)
def test_no_bytes_break_a_reader_of_envelopes(value: bytes) -> None:
    """An envelope is readable or None."""
    envelope = decode_envelope(value)
    if envelope is not None:
        with suppress(msgspec.DecodeError):
            decode_decisions(envelope)


@pytest.mark.parametrize("read", [decode_command, decode_order_event, decode_snapshot])
@settings(max_examples=100, deadline=None)
@given(value=ANY_VALUE)
@example(value=b'{"type":"\x80"}')
@example(value=b'{"type": ' + DEEP + b"}")
def test_no_bytes_break_a_reader_of_the_other_topics(read: Callable[[bytes], Any], value: bytes) -> None:
    """What cannot be read raises msgspec.DecodeError, which is what the readers catch, and never anything else."""
    with suppress(msgspec.DecodeError):
        read(value)


def test_decisions_that_are_not_text_stop_the_reader_too() -> None:
    """Bad UTF-8 in the decisions of a readable envelope raises the same error as unknown content."""
    envelope = decode_envelope(golden("DecisionsRecord").replace(b"sneaker-42", b"sneaker-\xff2"))
    if envelope is not None:
        with pytest.raises(msgspec.DecodeError):
            decode_decisions(envelope)
