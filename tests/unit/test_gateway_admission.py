"""What the gateway lets in, and what it answers to the rest."""

import pytest

from gateway.admission import purchase_request
from gateway.admission.purchase_request import PurchaseOrder
from gateway.auth.ids import IdentityKey, PurchasePlace, Subject
from gateway.http import problems, requests
from gateway.http.requests import pick
from service.problem_details import Kind, Problem
from stampede_schemas.identifiers import ProductId
from stampede_schemas.topics import PARTITIONS, partition_of
from tests.support.builders.gateway import IDENTITY_KEY

GOOD = b'{"product_id":"lamp","quantity":1}'


def body(quantity: str = "1", product_id: str = "lamp") -> bytes:
    """A body with this text as its quantity."""
    return f'{{"product_id":"{product_id}","quantity":{quantity}}}'.encode()


def kind(answer: object) -> Kind | None:
    """The kind of a problem; None for anything else."""
    return answer.kind if isinstance(answer, Problem) else None


@pytest.mark.parametrize("text", ["1", "1000", " 7 "])
def test_whole_quantities_are_read(text: str) -> None:
    """1 to 1,000 units."""
    parsed = purchase_request.purchase_body(body(text))
    assert isinstance(parsed, PurchaseOrder)
    assert parsed.quantity == int(text)


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1.5", "1.0", "1e2", '"1"', "true", "null", "[]", "{}", "NaN", "Infinity", "1e999", "1001"],
)
def test_any_other_quantity_is_unprocessable(text: str) -> None:
    """422, however odd the value."""
    assert kind(purchase_request.purchase_body(body(text))) is problems.INVALID_BODY


def test_any_length_of_number_is_unprocessable() -> None:
    """2**31, 2**63, and digits up to the limit of a body, without a stall."""
    for text in (str(2**31), str(2**63), "9" * 4000):
        assert kind(purchase_request.purchase_body(body(text))) is problems.INVALID_BODY


@pytest.mark.parametrize(
    "product_id",
    [
        "",
        "../x",
        "%00",
        "a" * 300,
        "🪔",
        "l\u0430mp",
        "lamp\u202e",
        "Lamp",
        "lamp ",
        ".lamp",
        "la/mp",
        "lamp\\u0000",
        "lamp\\n",
    ],
    ids=ascii,
)
def test_only_the_canonical_spelling_of_a_product_is_read(product_id: str) -> None:
    """Look-alikes, paths and control characters are no product ids."""
    assert kind(purchase_request.purchase_body(body(product_id=product_id))) is problems.INVALID_BODY


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", problems.MALFORMED),
        (b"[]", problems.INVALID_BODY),
        (b"7", problems.INVALID_BODY),
        (b"null", problems.INVALID_BODY),
        (GOOD + b"x", problems.MALFORMED),
        (GOOD + GOOD, problems.MALFORMED),
        (b"\xef\xbb\xbf" + GOOD, problems.MALFORMED),
        (GOOD.decode().encode("utf-16"), problems.MALFORMED),
        (b'{"product_id":"\\ud800","quantity":1}', problems.INVALID_BODY),
        (b'{"product_id":"\xff","quantity":1}', problems.MALFORMED),
        (b"[" * 4000, problems.MALFORMED),
        (b'{"product_id":"lamp","quantity":1,"quantity":1}', problems.MALFORMED),
        (b'{"product_id":"lamp","quantity":1,"quantit\\u0079":2}', problems.MALFORMED),
        (b'{"product_id":"lamp","product_id":"mug","quantity":1}', problems.MALFORMED),
        (b'{"product_id":"lamp","quantity":1,"price":1}', problems.INVALID_BODY),
        (b'{"product_id":"lamp","quantity":1,"userId":"bob"}', problems.INVALID_BODY),
        (b'{"product_id":"lamp","quantity":1,"status":"confirmed"}', problems.INVALID_BODY),
        (b'{"quantity":1}', problems.INVALID_BODY),
        (b'{"product_id":"lamp"}', problems.INVALID_BODY),
        (b'{"product_id":"lamp","quantity":1,"payment_method":"A B"}', problems.INVALID_BODY),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, bytes) else "",
)
def test_a_body_is_one_object_with_the_known_fields_once(raw: bytes, expected: Kind) -> None:
    """400 for what is not JSON or ambiguous, 422 for what says something else than a purchase."""
    assert kind(purchase_request.purchase_body(raw)) is expected


def test_escapes_in_a_good_body_are_no_offence() -> None:
    """`\\u0070` is a p: a body is judged by what it says, not by how it is spelled."""
    parsed = purchase_request.purchase_body(b'{"\\u0070roduct_id":"l\\u0061mp","quantity":2,"payment_method":"ok"}')
    assert parsed == PurchaseOrder(product_id="lamp", quantity=2, payment_method="ok")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"abc", "abc"),
        (b'"abc"', "abc"),
        (b'"a\\"b"', 'a"b'),
        (b"x" * 255, "x" * 255),
        (b"a b;c", "a b;c"),
        (b"*", "*"),
    ],
)
def test_a_key_is_read_bare_or_quoted(value: bytes, expected: str) -> None:
    """Both forms name the same key."""
    assert requests.idempotency_key({b"idempotency-key": value}) == expected


@pytest.mark.parametrize(
    "value", [b"", b'""', b'"open', b"x" * 256, b"\xc3\xa9", b"a\tb", b"a\x7f", None], ids=lambda v: ascii(v)[:20]
)
def test_any_other_key_is_refused(value: bytes | None) -> None:
    """Empty, unfinished, over 255, non-ASCII, control characters, sent twice (None)."""
    assert kind(requests.idempotency_key({b"idempotency-key": value})) is problems.KEY_INVALID
    assert kind(requests.idempotency_key({})) is problems.KEY_INVALID


def test_a_header_sent_twice_is_seen_as_such() -> None:
    """Neither copy is chosen."""
    assert pick([(b"idempotency-key", b"a"), (b"idempotency-key", b"a"), (b"cookie", b"x")]) == {
        b"idempotency-key": None
    }


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({b"content-type": b"application/json"}, None),
        ({b"content-type": b"Application/JSON; charset=UTF-8"}, None),
        ({}, problems.UNSUPPORTED_MEDIA),
        ({b"content-type": None}, problems.UNSUPPORTED_MEDIA),
        ({b"content-type": b"text/json"}, problems.UNSUPPORTED_MEDIA),
        ({b"content-type": b"application/json; charset=utf-16"}, problems.UNSUPPORTED_MEDIA),
        ({b"content-type": b"application/json", b"content-encoding": b"gzip"}, problems.UNSUPPORTED_MEDIA),
        ({b"content-type": b"application/json", b"content-length": b"4096"}, None),
        ({b"content-type": b"application/json", b"content-length": b"4097"}, problems.TOO_LARGE),
        ({b"content-type": b"application/json", b"content-length": b"9" * 5000}, problems.TOO_LARGE),
        ({b"content-type": b"application/json", b"content-length": b"-1"}, problems.MALFORMED),
    ],
    ids=str,
)
def test_media_and_size_are_judged_by_the_head_alone(headers: requests.Headers, expected: Kind | None) -> None:
    """Before a byte of the body is read."""
    assert kind(requests.check_media(headers)) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"wait=3", 3),
        (b'respond-async, wait="2"', 2),
        (b"Wait=60", 5),
        (b"wait=0", 0),
        (b"wait=-1", None),
        (b"wait=1.5", None),
        (b"wait=" + b"9" * 99, None),
        (b"return=minimal", None),
        (None, None),
    ],
)
def test_a_wait_is_at_most_five_seconds_and_nonsense_is_ignored(value: bytes | None, expected: int | None) -> None:
    """RFC 7240: a preference that cannot be honoured is no error."""
    assert requests.wait_seconds({b"prefer": value}) == expected


def test_a_purchase_id_depends_on_every_part_and_on_where_one_part_ends() -> None:
    """Another user, method, route, product or key is another purchase; parts do not run into each other."""
    key = IdentityKey(IDENTITY_KEY)
    ids = {
        key.purchase_id(Subject(issuer, name), method, route, ProductId(product), own)
        for issuer in ("a", "ab")
        for name in ("c", "bc", "")
        for method in ("POST", "PUT")
        for route in ("/x", "/x/y")
        for product in ("y", "y1")
        for own in ("1", "11", "/y1")
    }
    assert len(ids) == 2 * 3 * 2 * 2 * 2 * 3
    other = IdentityKey("another key that is at least as long as it must be")
    assert other.purchase_id(Subject("a", "c"), "POST", "/x", ProductId("y"), "1") not in ids
    assert other.fingerprint != key.fingerprint


def test_a_purchase_id_names_the_partition_of_its_product() -> None:
    """One purchase lives in one partition, so that its log alone can judge repeats."""
    key = IdentityKey(IDENTITY_KEY)
    for product in map(ProductId, ("tea", "lamp", "mug")):
        purchase_id = key.purchase_id(Subject("header", "ann"), "POST", "/x", product, "1")
        assert key.place_of(purchase_id) == PurchasePlace(partition_of(product))
    kid, hashed = purchase_id[:4], "0" * 32
    assert key.place_of(f"{kid}-{PARTITIONS - 1:02x}-{hashed}") == PurchasePlace(PARTITIONS - 1)
    assert key.place_of(f"{kid}-{PARTITIONS:02x}-{hashed}") is None
    assert key.place_of(f"zzzz-00-{hashed}") is None
    assert key.place_of(f"{kid}-00-{hashed}0") is None
    assert key.place_of(f"old1-{hashed}") == PurchasePlace(None)  # of the form before partitions stood in ids


def test_a_pseudonym_does_not_contain_the_name() -> None:
    """Nothing of the buyer goes into the log."""
    assert "ann" not in IdentityKey(IDENTITY_KEY).buyer_id(Subject("header", "ann"))


def test_an_identity_key_must_be_long() -> None:
    """A guessable key would make pseudonyms reversible."""
    with pytest.raises(ValueError, match="32 bytes"):
        IdentityKey("short")


def test_the_fingerprint_is_that_of_the_meaning() -> None:
    """Spelling, order and a default that is spelled out do not matter; every value does."""

    def of(raw: bytes) -> str:
        parsed = purchase_request.purchase_body(raw)
        assert isinstance(parsed, PurchaseOrder)
        return purchase_request.fingerprint(parsed)

    default = purchase_request.PAYMENT_METHOD_DEFAULT.encode()
    assert of(GOOD) == of(b' {"quantity" : 1, "payment_method":"' + default + b'","product_id":"l\\u0061mp"} ')
    assert len({of(GOOD), of(body("2")), of(body(product_id="mug")), of(GOOD[:-1] + b',"payment_method":"x"}')}) == 4
