"""Poison on `stampede.requests` with a real worker: one letter each, the very bytes, and the rest flows."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pytest

from eventlog.__main__ import provision
from eventlog.kafka import consumer, read_range, watermarks
from stampede_schemas.codec import NESTING_MAX, RECORD_BYTES_MAX, encode_requests
from stampede_schemas.decisions import AnyDecision, Ignored, Reserved, Unreadable
from stampede_schemas.identifiers import Position
from stampede_schemas.topics import DEAD_LETTERS, MESSAGE_BYTES_MAX, PARTITIONS, REQUESTS, partition_of
from tests.support.processes.inventory import InventoryProcess, Log, digest_of, listing, purchase, worker
from tests.support.processes.stack import components, eventually

NEXT_DECIDED_S_MAX = 5.0  # what comes before it is one letter that is acknowledged; a busy machine has time for it
DEEP = b"[" * 100_000 + b"]" * 100_000
NEAR_THE_TOPICS_LIMIT = MESSAGE_BYTES_MAX - 1_024  # a record and its headers share the limit


@dataclass(frozen=True)
class Scene:
    """A broker and two workers, for all tests here: each uses a product of its own."""

    kafka: str
    log: Log
    workers: tuple[InventoryProcess, InventoryProcess]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Started once."""
    with components() as running:
        provision(running.kafka, 1)
        folder = tmp_path_factory.mktemp("workers")
        with worker(running.kafka, folder) as one, worker(running.kafka, folder, "inventory-1") as other:
            workers = (one, other)
            eventually(lambda: sorted(map(len, map(owned, workers))) == [6, 6], 60, "six partitions each")
            yield Scene(running.kafka, Log(running.kafka), workers)


def owned(process: InventoryProcess) -> set[int]:
    """The partitions whose tables this worker shows."""
    return {partition for partition in range(PARTITIONS) if shows(process, partition)}


def shows(process: InventoryProcess, partition: int) -> object:
    """The digest of the table of this partition, None where another worker has it."""
    try:
        return process.get(f"/state?partition={partition}")["sha256"]
    except OSError:
        return None


@dataclass(frozen=True)
class Letter:
    """A dead letter as it lies in its topic."""

    value: bytes
    headers: dict[str, str]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def letters(kafka: str) -> dict[str, list[Letter]]:
    """All dead letters, by the place their bytes stood at (`partition/offset/index`)."""
    reader = consumer(kafka, **{"fetch.wait.max.ms": 10})
    found: dict[str, list[Letter]] = {}
    try:
        for number in range(PARTITIONS):
            for message in read_range(
                reader, DEAD_LETTERS.name, number, *watermarks(reader, DEAD_LETTERS.name, number)
            ):
                headers = {str(name): _text(value) for name, value in cast("list[tuple[str, Any]]", message.headers())}
                place = f"{headers['partition']}/{headers['offset']}/{headers['index']}"
                found.setdefault(place, []).append(Letter(message.value() or b"", headers))
    finally:
        reader.close()
    return found


def request(product_id: str, /, **fields: object) -> dict[str, Any]:
    """A purchase as JSON, with fields changed or, with `...`, left out."""
    plain: dict[str, Any] = json.loads(encode_requests([purchase(product_id)]))["requests"][0]
    return {key: value for key, value in (plain | fields).items() if value is not ...}


def record(*requests: bytes) -> bytes:
    """A record of these requests, as they are."""
    return b'{"requests":[' + b",".join(requests) + b"]}"


def number(product_id: str, quantity: bytes) -> bytes:
    """A purchase whose quantity is written like this."""
    return json.dumps(request(product_id, quantity=0)).encode().replace(b'"quantity": 0', b'"quantity": ' + quantity)


def elsewhere(product_id: str) -> str:
    """A product of another partition."""
    names = (f"{product_id}-{n}" for n in range(1_000))
    return next(name for name in names if partition_of(name) != partition_of(product_id))


def poisonous_requests(tea: str) -> dict[str, tuple[bytes, str]]:
    """Requests that are one unreadable thing inside a record that is readable, and the reason."""

    def changed(**fields: object) -> bytes:
        return json.dumps(request(tea, **fields)).encode()

    return {
        "a number": (b"17", "not_a_request"),
        "a text": (json.dumps(json.dumps(request(tea))[:-30]).encode(), "not_a_request"),
        "no type": (changed(type=...), "not_a_request"),
        "unknown type": (changed(type="PurchaseDreamt"), "unknown_type"),
        "unknown version": (changed(v=2), "unknown_version"),
        "version as text": (changed(v="1"), "not_a_request"),
        "no quantity": (changed(quantity=...), "not_a_request"),
        "quantity 0": (number(tea, b"0"), "not_a_request"),
        "quantity -1": (number(tea, b"-1"), "not_a_request"),
        "quantity 1.5": (number(tea, b"1.5"), "not_a_request"),
        "quantity 1e999": (number(tea, b"1e999"), "not_a_request"),
        "quantity 2^63": (number(tea, b"9223372036854775808"), "not_a_request"),
        "quantity of 5,000 digits": (number(tea, b"9" * 5_000), "not_a_request"),
        "bad UTF-8": (changed(buyer_id="b-?").replace(b"b-?", b"b-\xff"), "not_a_request"),
        "a NUL in its id": (changed(purchase_id="a\0b"), "not_a_request"),
        "a NUL in its method": (changed(payment_method="o\0k"), "not_a_request"),
        "769 bytes": (
            changed(x="").replace(b'"x": ""', b'"x": "%s"' % (b"x" * (769 - len(changed(x=""))))),
            "too_large",
        ),
        "a product of another partition": (changed(product_id=elsewhere(tea)), "wrong_partition"),
        "a decision": (b'{"type":"Reserved","product_id":"x"}', "unknown_type"),
    }


def poisonous_records(tea: str) -> dict[str, tuple[bytes | None, str]]:
    """Records that are one unreadable thing, and the reason."""
    good = encode_requests([purchase(tea)])
    big = json.dumps(request(tea)).encode()
    return {
        "random bytes": (bytes(range(256)), "not_json"),
        "no bytes": (b"", "not_json"),
        "a tombstone": (None, "empty"),
        "no requests": (b'{"requests":[]}', "empty"),
        "bad UTF-8": (b'{"\xff\xfe":1', "not_json"),
        "truncated": (good[:-1], "not_json"),
        "trailing junk": (good + b"}", "not_json"),
        "100,000 levels": (record(DEEP), "not_json"),
        "100,000 levels and no end": (b'{"requests":' + b"[" * 100_000, "not_json"),
        f"{NESTING_MAX + 1} levels in a good request": (
            record(big[:-1] + b',"x":' + b"[" * NESTING_MAX + b"]" * NESTING_MAX + b"}"),
            "not_json",
        ),
        "a lone surrogate": (record(json.dumps(request(tea, buyer_id="\ud800")).encode()), "not_json"),
        "NaN": (record(number(tea, b"NaN")), "not_json"),
        "quotation marks without an end": (b'{"requests":["' + b'\\"' * 50_000 + b"}" * (NESTING_MAX + 1), "not_json"),
        "brackets": (b'{"requests":[' + b"[]" * 250_000 + b"]}", "not_json"),
        "an array": (b"[1]", "not_a_request"),
        "requests that are text": (b'{"requests":"x"}', "not_a_request"),
        "501 requests": (record(*[big] * 501), "too_many"),
        "one byte over 512 KiB": (good.ljust(RECORD_BYTES_MAX + 1), "too_large"),
        "almost what the topic takes": (good + bytes(NEAR_THE_TOPICS_LIMIT - len(good)), "too_large"),
    }


def buried(scene: Scene, place: str, value: bytes, reason: str) -> None:
    """Exactly one letter lies for this place: reason, position and the very bytes."""
    found = letters(scene.kafka).get(place, [])
    assert len(found) == 1, f"{len(found)} letters for {place}"
    assert found[0].value == value
    partition, offset, index = place.split("/")
    wanted = {"reason": reason, "topic": REQUESTS.name, "partition": partition, "offset": offset, "index": index}
    assert wanted.items() <= found[0].headers.items()


def asked_and_answered(scene: Scene, partition: int) -> dict[int, list[AnyDecision]]:
    """Wait until the partition is answered."""
    return scene.log.await_answers(partition, 20.0)[1]


def append(scene: Scene, partition: int, value: bytes | None) -> int:
    """Append a record; its offset."""
    scene.log.flush()
    at = scene.log.ends(REQUESTS.name)[partition]
    scene.log.append(partition, value)
    scene.log.flush()
    return at


def next_one_is_decided_at_once(scene: Scene, tea: str) -> None:
    """A purchase right after the poison is reserved, as if there was none."""
    began = time.monotonic()
    at = append(scene, partition_of(tea), encode_requests([purchase(tea)]))
    answers = asked_and_answered(scene, partition_of(tea))
    took = time.monotonic() - began
    assert isinstance(answers[at][0], Reserved)
    assert took < NEXT_DECIDED_S_MAX, f"{took:.2f} s"


def new_tea(scene: Scene) -> str:
    """A product of the test's own, on sale."""
    tea = f"tea-{uuid4().hex[:8]}"
    scene.log.ask([listing(tea, 1_000)])
    scene.log.flush()
    asked_and_answered(scene, partition_of(tea))
    return tea


@pytest.mark.parametrize("case", poisonous_records("tea"))
def test_a_poisonous_record_is_one_letter_and_the_next_is_decided_at_once(scene: Scene, case: str) -> None:
    """The record as a whole gets one `Unreadable` decision and one letter with its bytes; a tombstone's are none."""
    tea = new_tea(scene)
    value, reason = poisonous_records(tea)[case]
    at = append(scene, partition_of(tea), value)
    next_one_is_decided_at_once(scene, tea)
    assert asked_and_answered(scene, partition_of(tea))[at] == [Unreadable(reason=reason)]  # type: ignore[arg-type]
    buried(scene, f"{partition_of(tea)}/{at}/0", value or b"", reason)


def test_poison_inside_a_batch_dead_letters_alone(scene: Scene) -> None:
    """Every kind of unreadable request in one record, a good one before and after each: the good ones are reserved."""
    tea = new_tea(scene)
    partition, cases = partition_of(tea), poisonous_requests(tea)
    mixed = [json.dumps(request(tea)).encode()]
    for raw, _ in cases.values():
        mixed += [raw, json.dumps(request(tea)).encode()]
    at = append(scene, partition, record(*mixed))
    next_one_is_decided_at_once(scene, tea)
    answers = asked_and_answered(scene, partition)[at]
    assert len(answers) == len(mixed)
    assert all(isinstance(answer, Reserved) for answer in answers[::2])
    for index, (name, (raw, reason)) in enumerate(cases.items()):
        assert answers[2 * index + 1] == Unreadable(reason=reason), name  # type: ignore[arg-type]
        buried(scene, f"{partition}/{at}/{2 * index + 1}", raw, reason)
    everywhere = [place for place in letters(scene.kafka) if place.startswith(f"{partition}/{at}/")]
    assert len(everywhere) == len(cases)


def test_the_same_poison_is_decided_alike_by_another_worker(scene: Scene) -> None:
    """Other partition, other process, records one by one or many at once: the same words, tables that are the fold."""
    said: list[list[list[AnyDecision]]] = []
    # What the bytes are must not depend on the product, but for the row that is about partitions.
    values = [value for value, _ in poisonous_records("any-tea").values()]
    values.append(record(*[raw for name, (raw, _) in poisonous_requests("any-tea").items() if "partition" not in name]))
    for one_by_one, process in enumerate(scene.workers):
        partition = min(owned(process))
        tea = next(name for name in (f"same-{n}" for n in range(1_000)) if partition_of(name) == partition)
        scene.log.ask([listing(tea, 10)])
        first = append(scene, partition, values[0])
        for value in values[1:]:
            scene.log.append(partition, value)
            if one_by_one:
                scene.log.flush()
        scene.log.flush()
        answers = asked_and_answered(scene, partition)
        said.append([answers[first + n] for n in range(len(values))])
        assert shows(process, partition) == digest_of(scene.log.answered(partition)[0])
    assert said[0] == said[1]


def test_an_old_record_again_is_answered_and_no_letter(scene: Scene) -> None:
    """The copy names the first answers; nothing is taken twice."""
    tea = new_tea(scene)
    partition, wishes = partition_of(tea), encode_requests([purchase(tea), purchase(tea)])
    first = append(scene, partition, wishes)
    again = append(scene, partition, wishes)
    answers = asked_and_answered(scene, partition)
    assert [type(answer) for answer in answers[first]] == [Reserved, Reserved]
    assert [(type(a), getattr(a, "of", None)) for a in answers[again]] == [
        (Ignored, Position(partition, first, 0)),
        (Ignored, Position(partition, first, 1)),
    ]
    assert not [place for place in letters(scene.kafka) if place.startswith(f"{partition}/{again}/")]


def test_of_two_equal_keys_the_last_counts(scene: Scene) -> None:
    """JSON leaves it open; here every reader takes the last one (each has to be valid), so it is no letter."""
    tea = new_tea(scene)
    twice = json.dumps(request(tea)).encode().replace(b'"quantity": 1', b'"quantity": 2, "quantity": 1')
    at = append(scene, partition_of(tea), record(twice))
    answer = asked_and_answered(scene, partition_of(tea))[at][0]
    assert isinstance(answer, Reserved)
    assert answer.quantity == 1
