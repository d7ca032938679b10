"""The largest legal batch of requests has an answer that Kafka takes.

If one did not, its worker would exit at the produce, meet the batch again after the restart, and never get past it.
So this is about what the *wire* allows, by whomever it was written, not about what the gateway happens to send.
"""

import json
from functools import cache
from itertools import islice, product
from string import ascii_lowercase, digits
from typing import Any, NamedTuple, get_args

import pytest

from inventory.domain import decide
from inventory.table import Product, Reservation, StockTable
from stampede_schemas.codec import (
    PURCHASE_BYTES_MAX,
    RECORD_BYTES_MAX,
    REQUEST_BYTES_MAX,
    REQUESTS_PER_RECORD_MAX,
    UnreadableMessage,
    decode_request,
    encode,
    encode_decisions,
    encode_requests,
)
from stampede_schemas.decisions import ProductListed, ProductStatus
from stampede_schemas.identifiers import (
    HOLD_MS_MAX,
    ID_LENGTH_MAX,
    INSTANT_MS_MAX,
    PRICE_MINOR_MAX,
    QUANTITY_MAX,
    STOCK_MAX,
    BuyerId,
    Millis,
    Position,
    ProductId,
    PurchaseId,
    WriterEpoch,
)
from stampede_schemas.requests import (
    AnyRequest,
    ProductListRequested,
    PurchaseRequested,
    ReleaseReason,
    ReleaseRequested,
)
from stampede_schemas.topics import MESSAGE_BYTES_MAX, partition_of

PARTITION = 11
OFFSET = 2**63 - 1
NOW = Millis(INSTANT_MS_MAX - 1)  # within the window of every product
DECISIONS_BYTES_MAX = MESSAGE_BYTES_MAX * 3 // 4
# What a character of a text can cost on the wire: one byte, two (escaped), four (UTF-8), six (an escaped control).
FILLINGS = {"plain": "x", "quote": '"', "four-byte": "\N{ARTIST PALETTE}", "control": "\x01"}
LENGTHS = (3, 32, ID_LENGTH_MAX)


class Case(NamedTuple):
    """One way to fill a batch: ids of `length` characters, every text made of `filling` as far as that is legal."""

    filling: str
    length: int


BASES: dict[str, dict[str, Any]] = {
    "list": {
        "type": "ProductListRequested",
        "request_id": "listing",
        "product_id": "???",
        "name": "X",
        "unit_price_minor": PRICE_MINOR_MAX,
        "currency": "XXX",
        "stock": STOCK_MAX,
        "per_buyer_limit": QUANTITY_MAX,
        "hold_ms": HOLD_MS_MAX,
        "opens_at_ms": INSTANT_MS_MAX - 2,
        "closes_at_ms": INSTANT_MS_MAX,
    },
    "change": {"type": "ProductChangeRequested", "request_id": "???", "action": "open"},
    "retire": {"type": "ProductRetireRequested", "request_id": "???"},
    "restock": {"type": "RestockRequested", "request_id": "???", "quantity": STOCK_MAX},
    "purchase": {
        "type": "PurchaseRequested",
        "purchase_id": "???",
        "buyer_id": "X",
        "quantity": QUANTITY_MAX,
        "payment_method": "X",
        "fingerprint": "X",
    },
    "release": {"type": "ReleaseRequested", "reservation": [PARTITION, OFFSET, 0], "reason": "cancelled_by_operator"},
}
IDS = ("product_id", "purchase_id", "request_id")  # "???": its first three characters tell one request from another
TEXTS: dict[str, dict[str, int]] = {
    "list": {"name": 200, "currency": 3},
    "purchase": {"buyer_id": ID_LENGTH_MAX, "fingerprint": 64, "payment_method": 32, "traceparent": 64},
    "release": {"traceparent": 64},
}
ANSWERS: dict[str, set[str]] = {
    "list": {"ProductListed", "Ignored"},
    "change": {"ProductChanged", "Ignored"},
    "retire": {"ProductRetired", "Ignored"},
    "restock": {"RestockRejected", "Ignored"},
    "purchase": {"Reserved", "Rejected", "Ignored"},
    "release": {"Released", "Ignored"},
}


def read(fields: dict[str, Any], *, shortest: bool = False) -> AnyRequest | None:
    """The request, if the wire allows it."""
    form: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False} if shortest else {}
    try:
        return decode_request(json.dumps(fields, **form).encode())
    except UnreadableMessage:
        return None


@cache
def widest(kind: str, case: Case) -> dict[str, Any]:
    """A request of that kind with each text as many bytes as the wire allows beside the others."""
    fields = dict(BASES[kind])
    if kind != "list":
        fields["product_id"] = widest("list", case)["product_id"]
    if kind == "release":
        fields["purchase_id"] = widest("purchase", case)["purchase_id"]
    texts = {name: case.length for name in IDS if fields.get(name) == "???"} | TEXTS.get(kind, {})
    for name, length in texts.items():
        head = "???" if name in IDS else ""
        tails = [case.filling * (length * part // 4 - len(head)) for part in (4, 3, 2, 1)]
        for tail in (*tails, "X" * (length - len(head))):
            if read(fields | {name: head + tail}) is not None:
                fields[name] = head + tail
                break
    return fields


@cache
def heads(tail: str) -> list[str]:
    """500 beginnings that make product ids of the partition with this tail."""
    every = map("".join, product(ascii_lowercase + digits, repeat=3))
    return list(islice((head for head in every if partition_of(head + tail) == PARTITION), REQUESTS_PER_RECORD_MAX))


@cache
def request(kind: str, case: Case, number: int) -> AnyRequest:
    """The widest request, with ids of its own, about the product or the purchase of that number."""
    fields = dict(widest(kind, case))
    head = heads(fields["product_id"][3:])[number]
    fields |= {name: head + fields[name][3:] for name in IDS if fields.get(name, "").startswith("???")}
    if kind == "release":
        fields["reservation"] = [PARTITION, OFFSET, number]
    found = read(fields)
    assert found is not None
    return found


def largest_legal_batch(kind: str, case: Case) -> list[AnyRequest]:
    """As many such requests as one record may hold."""
    requests = [request(kind, case, number) for number in range(REQUESTS_PER_RECORD_MAX)]
    while len(encode_requests(requests)) > RECORD_BYTES_MAX:
        requests.pop()
    return requests


def listed(request: ProductListRequested, status: ProductStatus) -> Product:
    """The product that was listed by `request`, with a place in its table."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name != "v"}
    first = ProductListed(**fields, status=status, available_after=request.stock)
    return Product(
        listed=first,
        unit_price_minor=first.unit_price_minor,
        per_buyer_limit=first.per_buyer_limit,
        hold_ms=first.hold_ms,
        status=status,
        opens_at_ms=first.opens_at_ms,
        closes_at_ms=first.closes_at_ms,
        stock=STOCK_MAX,
        available=STOCK_MAX - QUANTITY_MAX,
        reserved=QUANTITY_MAX,
        next_reservation_no=STOCK_MAX,
    )


@cache
def tables(case: Case) -> list[StockTable]:
    """States that draw different answers: nothing known; products open, paused, retired; purchases held; rejected."""
    products: dict[ProductStatus, dict[ProductId, Product]] = {"open": {}, "paused": {}, "retired": {}}
    held: dict[PurchaseId, Reservation] = {}
    for number in range(REQUESTS_PER_RECORD_MAX):
        listing, bought = request("list", case, number), request("purchase", case, number)
        assert isinstance(listing, ProductListRequested)
        assert isinstance(bought, PurchaseRequested)
        for status, known in products.items():
            known[listing.product_id] = listed(listing, status)
        held[bought.purchase_id] = Reservation(
            bought.product_id,
            bought.buyer_id,
            QUANTITY_MAX,
            bought.payment_method,
            bought.fingerprint,
            OFFSET,
            number,
            True,
        )
    return [
        StockTable(PARTITION),
        StockTable(PARTITION, products["open"]),
        StockTable(PARTITION, products["paused"]),
        StockTable(PARTITION, products["retired"]),
        StockTable(PARTITION, products["open"], held),
        StockTable(PARTITION, products["open"], rejected=dict.fromkeys(held, (OFFSET, 499, "another body"))),
    ]


def answer_bytes(requests: list[AnyRequest], table: StockTable) -> int:
    """The size of the decisions record that answers the batch, with the longest envelope there can be."""
    decisions = [decide(table, request, NOW) for request in requests]
    return len(encode_decisions(OFFSET, 2**32 - 1, WriterEpoch("f" * 32), OFFSET, Millis(INSTANT_MS_MAX), decisions))


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("kind", BASES)
def test_the_answer_to_the_largest_legal_batch_fits(kind: str, filling: str) -> None:
    """Whatever legal requests fill a record, its decisions take at most three quarters of a Kafka message."""
    for length in LENGTHS:
        case = Case(FILLINGS[filling], length)
        requests = largest_legal_batch(kind, case)
        largest = max(answer_bytes(requests, table) for table in tables(case))
        assert largest <= DECISIONS_BYTES_MAX, f"{len(requests)} requests with ids of {length}"


@pytest.mark.parametrize("kind", BASES)
def test_full_batches_of_plain_text_are_legal_and_draw_every_answer(kind: str) -> None:
    """The test above measures something: the wire takes 500 of each kind, and the tables know what they speak of."""
    case = Case(FILLINGS["plain"], 32)
    requests = largest_legal_batch(kind, case)
    assert len(requests) == REQUESTS_PER_RECORD_MAX
    drawn = {type(decide(table, requests[-1], NOW)).__name__ for table in tables(case)}
    assert drawn == ANSWERS[kind]


def longest_release(of: PurchaseRequested) -> ReleaseRequested:
    """The release of its reservation that takes most bytes: the last position there can be, and the longest reason."""
    return ReleaseRequested(
        purchase_id=of.purchase_id,
        product_id=of.product_id,
        reservation=Position(PARTITION, OFFSET, REQUESTS_PER_RECORD_MAX - 1),
        reason=max(get_args(ReleaseReason), key=len),
        traceparent=of.traceparent,
    )


@pytest.mark.parametrize("filling", FILLINGS)
def test_what_is_bought_can_be_given_back(filling: str) -> None:
    """The release of every legal purchase can be read, alone and among 500: else its units were held for ever."""
    least = BASES["purchase"] | {"purchase_id": "p", "product_id": "q", "traceparent": "t", "quantity": 1}
    largest = 0
    for length in range(ID_LENGTH_MAX):
        for other in (0, 64, ID_LENGTH_MAX - 1):
            for traced in (0, 31, 63):
                tails = {"purchase_id": length, "product_id": other, "traceparent": traced}
                fields = least | {name: least[name] + FILLINGS[filling] * size for name, size in tails.items()}
                bought = read(fields, shortest=True)
                if isinstance(bought, PurchaseRequested):
                    release = encode(longest_release(bought))
                    largest = max(largest, len(release))
                    assert isinstance(decode_request(release), ReleaseRequested), len(release)
    assert largest > REQUEST_BYTES_MAX // 2
    assert REQUESTS_PER_RECORD_MAX * (REQUEST_BYTES_MAX + 1) + len(encode_requests([])) <= RECORD_BYTES_MAX


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_of_a_purchase_is_that_of_its_release(over: int) -> None:
    """The largest legal purchase of least other fields has a release of just what is legal; with a byte more none."""
    bought = PurchaseRequested(
        purchase_id=PurchaseId("\x01" * 60),
        buyer_id=BuyerId("b"),
        product_id=ProductId("\x01" * 32 + "q" * (63 + over)),
        quantity=1,
        payment_method="m",
        fingerprint="f",
        traceparent="",
    )
    size = len(encode(bought))
    assert size == PURCHASE_BYTES_MAX + over
    assert len(encode(longest_release(bought))) == REQUEST_BYTES_MAX + over
    assert (read(json.loads(encode(bought)), shortest=True) is None) == bool(over)
