"""The checker's own reading and model against the services' code, on whatever Hypothesis thinks of."""

import json
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog.reader import CountingReader, Fenced
from replay.contract import REJECTED_GENERATION, read_request, split
from replay.evidence import Partition, Record
from replay.judge import judge
from replay.rules import RULES
from stampede_schemas.codec import UnreadableMessage, decode_request, encode, split_requests
from stampede_schemas.decisions import Reserved
from stampede_schemas.requests import AnyRequest
from tests.support.builders.replay import BEGAN_MS, SmallSale
from tests.support.builders.requests import ELSEWHERE, LAMP, MUG, change, listing, purchase, release, restock, retire

QUICK = tuple(rule for rule in RULES if rule.NAME != "S13")
products = st.sampled_from([LAMP, LAMP, LAMP, MUG])
keys = st.sampled_from([f"buy-{n}" for n in range(12)])
instants = st.one_of(st.none(), st.integers(0, 20).map(lambda n: BEGAN_MS + 10 * n))  # when records are appended, too
operators = st.sampled_from(
    [f"op-{n}" for n in range(4)] + [f"r{n}{'7' * 31}-{c * 16}" for n in range(2) for c in "ab"]
)
listings = st.builds(
    listing,
    product=products,
    stock=st.integers(1, 6),
    limit=st.integers(1, 3),
    request=operators,
    opens_at_ms=instants,
    closes_at_ms=st.one_of(st.none(), instants),
)
open_listings = st.builds(listing, stock=st.integers(2, 6), limit=st.integers(1, 3), request=operators)
purchases = st.builds(
    purchase,
    purchase_id=keys,
    buyer=st.sampled_from(["ann", "bob"]),
    quantity=st.integers(1, 3),
    product=st.sampled_from([LAMP, LAMP, LAMP, LAMP, MUG, ELSEWHERE]),
    fingerprint=st.sampled_from(["f", "f", "ff", "0123456789abcdef0", "0123456789abcdef1"]),
)
restocks = st.builds(restock, quantity=st.integers(-3, 4), request=operators, product=products)
changes = st.builds(
    change,
    request=operators,
    product=products,
    action=st.sampled_from([None, "open", "open", "pause", "close"]),
    per_buyer_limit=st.one_of(st.none(), st.integers(1, 3)),
    opens_at_ms=instants,
    closes_at_ms=instants,
)
requests: st.SearchStrategy[AnyRequest] = st.one_of(
    purchases, purchases, purchases, purchases, restocks, changes, listings, st.builds(retire, operators, products)
)
poison = st.sampled_from(
    [None, b"", b"{", b'{"requests": []}', b'{"requests": [{}]}', b"\xff\x00", b'{"requests": [1, {"type": "X"}]}']
)


class RequestRelease(NamedTuple):
    """Release the n-th reservation of the sale so far, or what is no reservation."""

    number: int


steps = st.one_of(
    st.lists(requests, min_size=1, max_size=3),
    st.lists(purchases, min_size=1, max_size=3),
    st.builds(RequestRelease, st.integers(0, 3)),
    poison,
    st.just("takeover"),
)


def give_back(small: SmallSale, number: int) -> None:
    """Ask for the release, at the right place, or at a wrong one when there are not so many reservations."""
    made = [(place, decision) for place, decision in small.decided if isinstance(decision, Reserved)]
    if number < len(made):
        place, decision = made[number]
        small.ask(release((place.offset, place.index), decision.purchase_id, decision.product_id))
    else:
        small.ask(release((number, 0), f"buy-{number}"))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(open_listings, open_listings, listings),
    st.lists(steps, max_size=25),
    st.sampled_from([1, 2, 3, REJECTED_GENERATION]),
)
def test_whatever_is_asked_the_checker_agrees_with_the_inventory(
    first: AnyRequest, then: list[list[AnyRequest] | RequestRelease | bytes | str | None], generation: int
) -> None:
    """A sale that the real rules decided holds: the model makes the same decisions from the requests alone."""
    small = SmallSale(generation=generation)
    small.ask(first)
    for step in then:
        match step:
            case list():
                small.ask(*step)
            case RequestRelease(number):
                give_back(small, number)
            case str():
                small.void()
            case _:
                small.log(step)
    evidence = small.evidence()
    evidence.journal = None  # nobody was told anything
    found = {one.name: one.first for one in judge(evidence, QUICK) if one.verdict == "violated"}
    assert found == {}


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(["", "a", "b", "c"]), st.integers(0, 8), st.integers(0, 9)),
        max_size=12,
    )
)
def test_the_same_records_count(records: list[tuple[int, str, int, int]]) -> None:
    """The checker's few lines and the services' reader call the same records void, whatever stands in the log."""
    values = [
        b"junk"
        if broken == 0
        else json.dumps(
            {
                "source_offset": source,
                "source_crc": 0,
                "load": load,
                "start": start,
                "appended_at_ms": 0,
                "decisions": [],
            }
        ).encode()
        for source, load, start, broken in records
    ]
    reader = CountingReader()
    void = [offset for offset, value in enumerate(values) if isinstance(reader.read(offset, value), Fenced)]
    partition = Partition(0, decisions=[Record(offset, 0, value) for offset, value in enumerate(values)])
    assert partition.void == void
    assert [record.source_offset for record in partition.counting][-1:] == [
        offset for offset in [reader.progress.source_offset] if offset >= 0
    ]


GOOD: list[dict[str, object]] = [
    {"v": 1, "traceparent": None} | json.loads(encode(request))
    for request in (
        purchase(),
        release((1, 0)),
        listing(opens_at_ms=1, closes_at_ms=2),
        restock(1),
        change(action="open", per_buyer_limit=1, hold_ms=1, unit_price_minor=1),
        retire(),
    )
]
ODD: list[object] = [
    None, "", "x" * 33, "x" * 65, "x" * 97, "x" * 201, 0, -1, 1.5, 1_000, 1_001, 2**31, 2**70, 604_800_001, True, [],
    [0, 1, 2], [0, 1], [0, -1, "x"], {}, "RestockRequested", "Nope", 2, "é", "a b", "a\n", "a\\b", 'a"b', "EUR", "EURO",
    "eur", "hold_expired", "open", "\U0001f375" * 64,
    "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("good", GOOD, ids=lambda good: str(good["type"]))
def test_the_same_requests_are_readable(good: dict[str, object]) -> None:
    """The checker's own shapes refuse what the contract refuses, with the same word for why, field by field."""
    for field in good:
        without = {name: value for name, value in good.items() if name != field}
        for wanted in [good, without, *(good | {field: odd} for odd in ODD)]:
            record = json.dumps({"requests": [wanted, {}, {"type": 1}]}).encode()
            assert _ours(record) == _theirs(record), wanted


@pytest.mark.parametrize("size", [759, 760, 761, 768, 769])
def test_the_same_purchases_are_too_large(size: int) -> None:
    """Whatever makes them so: here fields that nobody knows."""
    plain = json.dumps(GOOD[0] | {"more": ""}).encode()
    record = b'{"requests": [' + plain[:-2] + b"x" * (size - len(plain)) + plain[-2:] + b"]}"
    assert _ours(record) == _theirs(record)
    assert _ours(record) == (["read"] if size <= 760 else ["too_large"])


@pytest.mark.parametrize(
    "record",
    [
        b'{"requests": [' + b",".join([b"{}"] * 500) + b"]}",
        b'{"requests": [' + b",".join([b"{}"] * 501) + b"]}",
        b'{"requests": [' + b" " * (512 * 1024 - 16) + b"]}",
        b'{"requests": [' + b" " * (512 * 1024 - 15) + b"]}",
        b'{"requests": {}}',
        b'{"requests": [1, 2',
        b'{"requests": [{"quantity": NaN}]}',
        b'{"requests": [{"type": "PurchaseRequested", "quantity": 1e999}]}',
        b"[" * 100_000,
        b'{"requests": [{"type": "\xff"}]}',
    ],
    ids=lambda record: str(record[:24]),
)
def test_the_same_records_are_readable(record: bytes) -> None:
    """At the limits of a batch and beyond any sense."""
    assert _ours(record) == _theirs(record)


def _ours(record: bytes) -> list[str]:
    found = split(record)
    if isinstance(found, str):
        return [found]
    return [request if isinstance(request := read_request(raw), str) else "read" for raw in found]


def _theirs(record: bytes) -> list[str]:
    try:
        raws = split_requests(record)
    except UnreadableMessage as unreadable:
        return [unreadable.reason]
    said: list[str] = []
    for raw in raws:
        try:
            decode_request(raw)
            said.append("read")
        except UnreadableMessage as unreadable:
            said.append(unreadable.reason)
    return said
