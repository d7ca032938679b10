"""The checker's own reading and model against the services' code, on whatever Hypothesis thinks of."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog.reader import CountingReader, Void
from replay.contract import read_request, split
from replay.evidence import Partition, Record
from replay.judge import judge
from replay.rules import RULES
from stampede_schemas.codec import UnreadableMessage, decode_request, split_requests
from stampede_schemas.requests import AnyRequest
from tests.support.replay import BEGAN_MS, SmallSale
from tests.support.requests import ELSEWHERE, LAMP, MUG, change, listing, purchase, release, restock, retire

QUICK = tuple(rule for rule in RULES if rule.NAME != "S13")
products = st.sampled_from([LAMP, LAMP, MUG])
keys = st.sampled_from([f"buy-{n}" for n in range(8)])
instants = st.one_of(st.none(), st.integers(BEGAN_MS, BEGAN_MS + 200))
operators = st.sampled_from([f"op-{n}" for n in range(4)])
places = st.tuples(st.integers(0, 12), st.integers(0, 2))

requests: st.SearchStrategy[AnyRequest] = st.one_of(
    st.builds(
        listing,
        product=products,
        stock=st.integers(0, 5),
        limit=st.integers(1, 3),
        request=operators,
        opens_at_ms=instants,
        closes_at_ms=instants,
    ),
    *[
        st.builds(
            purchase,
            purchase_id=keys,
            buyer=st.sampled_from(["ann", "bob", "cat"]),
            quantity=st.integers(1, 3),
            product=st.sampled_from([LAMP, LAMP, LAMP, MUG, ELSEWHERE]),
        )
    ]
    * 4,
    st.builds(release, at=places, purchase_id=keys, product=products),
    st.builds(restock, quantity=st.integers(-3, 4), request=operators, product=products),
    st.builds(
        change,
        request=operators,
        product=products,
        action=st.sampled_from([None, "open", "pause", "close"]),
        per_buyer_limit=st.one_of(st.none(), st.integers(1, 3)),
        opens_at_ms=instants,
    ),
    st.builds(retire, request=operators, product=products),
)
poison = st.sampled_from(
    [None, b"", b"{", b'{"requests": []}', b'{"requests": [{}]}', b"\xff\x00", b'{"requests": [1, {"type": "X"}]}']
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.lists(requests, min_size=1, max_size=3), poison, st.just("takeover")), max_size=30))
def test_whatever_is_asked_the_checker_agrees_with_the_inventory(
    steps: list[list[AnyRequest] | bytes | str | None],
) -> None:
    """A sale that the real rules decided holds: the model makes the same decisions from the requests alone."""
    small = SmallSale()
    for step in steps:
        if isinstance(step, list):
            small.ask(*step)
        elif isinstance(step, str):
            if small.decisions:
                small.void()
        else:
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
    void = [offset for offset, value in enumerate(values) if isinstance(reader.read(offset, value), Void)]
    partition = Partition(0, decisions=[Record(offset, 0, value) for offset, value in enumerate(values)])
    assert partition.void == void
    assert [record.source_offset for record in partition.counting][-1:] == [
        offset for offset in [reader.progress.source_offset] if offset >= 0
    ]


fields = st.sampled_from(
    ["type", "v", "purchase_id", "buyer_id", "product_id", "quantity", "payment_method", "fingerprint", "traceparent"]
)
odd: st.SearchStrategy[object] = st.sampled_from(
    [None, "", "x" * 97, 0, -1, 1.5, 2**31, 2**70, True, [], {}, "RestockRequested", "Nope", 2, "é"]
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(fields, odd, max_size=2), st.sets(fields, max_size=1), st.binary(max_size=3))
def test_the_same_requests_are_readable(replaced: dict[str, object], missing: set[str], junk: bytes) -> None:
    """The checker's own shapes refuse what the contract refuses, with the same word for why."""
    good = {
        "type": "PurchaseRequested", "purchase_id": "p", "buyer_id": "b", "product_id": "x", "quantity": 1,
        "payment_method": "ok", "fingerprint": "f",
    }  # fmt: skip
    wanted = {name: value for name, value in (good | replaced).items() if name not in missing}
    record = json.dumps({"requests": [wanted, {}, {"type": 1}]}).encode() + junk
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
