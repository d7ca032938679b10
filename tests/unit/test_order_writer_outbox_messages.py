"""What leaves the order-writer fits when it is written: releases are split, dead letters hold what can be kept."""

from datetime import UTC, datetime
from hashlib import sha256

from msgspec.structs import replace

from order_writer.outbox.messages import Outgoing, cut, dead_letter, releases
from order_writer.saga import orders
from order_writer.saga.decision_batch import Record
from stampede_schemas.codec import RECORD_BYTES_MAX, REQUESTS_PER_RECORD_MAX, split_requests
from stampede_schemas.dead_letters import KEPT_BYTES, WHOLE_BYTES_MAX
from stampede_schemas.identifiers import Millis, Position, ProductId, PurchaseId
from stampede_schemas.topics import DEAD_LETTERS, ORDER_COMMANDS
from tests.support.builders.orders import order

WIDE = "\x01"  # six bytes on the wire


def letter_of(value: bytes, *headers: tuple[str, bytes]) -> Outgoing:
    """A command of that content, dead-lettered."""
    record = Record(value, 6, 17, datetime.now(UTC), headers)
    return dead_letter(ORDER_COMMANDS.name, record, "not_a_command", first_seen_ms=Millis(1))


def release(number: int, name: str = "p") -> orders.RequestRelease:
    """Of an own reservation."""
    of = order(f"{name}{number}")
    return orders.RequestRelease(of.purchase_id, of.product_id, Position(3, number, 0), "cancelled", None)


def test_a_letter_is_the_bytes_of_the_record_up_to_the_limit_of_a_message() -> None:
    """Equal bytes, and the record's own headers beside those that say where it stood."""
    letter = letter_of(bytes(WHOLE_BYTES_MAX - 100), ("shade", b"grey"))
    assert letter.value == bytes(WHOLE_BYTES_MAX - 100)
    assert dict(letter.headers) == {
        "reason": b"not_a_command",
        "topic": b"stampede.order-commands",
        "partition": b"6",
        "offset": b"17",
        "first_seen_ms": b"1",
        "original.shade": b"grey",
    }


def test_beyond_it_the_letter_holds_size_hash_position_and_beginning() -> None:
    """And says so; a record's headers of a sensible size stay."""
    value = b"begins" + bytes(3 * WHOLE_BYTES_MAX)
    letter = letter_of(value, ("shade", b"grey"))
    assert letter.value == value[:KEPT_BYTES]
    wanted = {
        "size": b"%d" % len(value),
        "sha256": sha256(value).hexdigest().encode(),
        "kept": b"65536",
        "offset": b"17",
        "original.shade": b"grey",
    }
    assert wanted.items() <= dict(letter.headers).items()


def test_headers_can_be_the_large_part() -> None:
    """They are left out then, and counted; the value is whole if it is small."""
    letter = letter_of(b"small", *[(f"h{n}", bytes(1_000)) for n in range(2_000)])
    assert letter.value == b"small"
    assert dict(letter.headers)["headers_left_out"] == b"2000"
    assert not any(name.startswith("original.") for name, _ in letter.headers)


def test_a_letter_that_was_refused_is_cut_once() -> None:
    """What an earlier version wrote; cutting it again changes nothing."""
    whole = Outgoing(DEAD_LETTERS.name, 0, b"k", bytes(500_000), [("reason", b"r"), ("original.a", b"b")])
    once = cut(whole)
    assert (once.value, dict(once.headers)["size"], dict(once.headers)["reason"]) == (bytes(65_536), b"500000", b"r")
    assert "original.a" not in dict(once.headers)
    assert cut(once) == once


def test_releases_fit_into_records_that_can_be_read() -> None:
    """Each is in one of them, in order: what is given back may not become one unreadable thing with 499 others."""
    wide = [replace(release(n), product_id=ProductId(WIDE * 96), purchase_id=PurchaseId(WIDE * 96)) for n in range(501)]
    for given in (wide, [release(n) for n in range(1_700)]):
        records = releases(given)
        split = [split_requests(record.value) for record in records]
        assert sum(map(len, split)) == len(given)
        assert all(len(requests) <= REQUESTS_PER_RECORD_MAX for requests in split)
        assert all(len(record.value) <= RECORD_BYTES_MAX for record in records)
        numbers = [b"[3,%d,0]" % n in bytes(raw) for n, raw in enumerate(raw for part in split for raw in part)]
        assert all(numbers)
