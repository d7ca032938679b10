"""Real workers on a real broker: every request gets one answer, whatever dies or freezes."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import NewPartitions

from eventlog.__main__ import provision
from eventlog.kafka import admin_client, consumer
from stampede_schemas.codec import decode_snapshot, encode_requests
from stampede_schemas.snapshots import SnapshotCommitted
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS, PARTITIONS, REQUESTS, STOCK_SNAPSHOTS, partition_of
from tests.support.processes.inventory import InventoryProcess, Log, digest_of, kinds, listing, purchase, worker
from tests.support.processes.stack import components, eventually


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """A broker of this module's own: its `decisions` is written by workers only."""
    with components() as running:
        provision(running.kafka, 1)
        yield running.kafka


def product() -> str:
    """A product nobody used before."""
    return f"tea-{uuid4().hex[:8]}"


class Crowd:
    """Appends purchases at a steady pace, ten a record, from a thread of its own, until it is told to stop.

    As a context it stops at the block's end: whatever is done to workers inside is done under load.
    """

    def __init__(self, log: Log, product_id: str, per_second: int) -> None:
        self._log, self._product_id, self._per_second = log, product_id, per_second
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(10 / self._per_second):
            self._log.ask([purchase(self._product_id) for _ in range(10)])
        self._log.flush()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_every_request_is_answered_and_the_table_is_the_fold_of_the_log(kafka: str, tmp_path: Path) -> None:
    """2,000 purchases of 300 units: 300 reserved, the rest rejected; the live table equals the one folded here."""
    log, tea = Log(kafka), product()
    with worker(kafka, tmp_path) as running:
        running.await_ready()
        log.ask([listing(tea, 300)])
        for _ in range(200):
            log.ask([purchase(tea) for _ in range(10)])
        log.flush()
        table, answers, void = log.await_answers(partition_of(tea))
        assert kinds(answers)["Reserved"] == 300
        assert kinds(answers)["Rejected"] == 1_700
        assert void == 0
        state = running.get(f"/state?partition={partition_of(tea)}")
        assert state["sha256"] == digest_of(table)


def test_the_same_purchase_fifty_times_takes_one_unit(kafka: str, tmp_path: Path) -> None:
    """Copies of an answered purchase are ignored and name the first answer's position."""
    log, tea = Log(kafka), product()
    with worker(kafka, tmp_path) as running:
        running.await_ready()
        log.ask([listing(tea, 100)])
        for _ in range(5):
            log.ask([purchase(tea, "the-same") for _ in range(10)])
        log.flush()
        table, answers, _ = log.await_answers(partition_of(tea))
    assert table.products[purchase(tea).product_id].available == 99
    assert kinds(answers)["Ignored"] >= 49


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_and_restart_lose_nothing_and_answer_nothing_twice(kafka: str, tmp_path: Path, seed: int) -> None:
    """Three kills at random moments under load: each request record has exactly one counting answer."""
    chance = random.Random(seed)
    log, tea = Log(kafka), product()
    running = InventoryProcess(kafka, tmp_path)
    try:
        running.await_ready()
        log.ask([listing(tea, 1_000)])
        pauses = []
        with Crowd(log, tea, 1_000):
            for _ in range(3):
                await_decisions(log, tea, chance.randrange(10, 100))
                running.kill()
                killed = time.monotonic()
                running.close()
                running = InventoryProcess(kafka, tmp_path)
                running.await_ready()
                pauses.append(time.monotonic() - killed)
            await_decisions(log, tea, 110)  # ten purchases each: all 1,000 units are sold
        table, answers, void = log.await_answers(partition_of(tea))
        print(f"seed {seed}: ready again after {[f'{p:.1f}' for p in pauses]} s, {void} void records")
        assert kinds(answers)["Reserved"] >= 1_000
        assert table.products[purchase(tea).product_id].available == 0
        assert running.get(f"/state?partition={partition_of(tea)}")["sha256"] == digest_of(table)
    finally:
        running.close()


def test_a_frozen_worker_that_thaws_changes_nothing(kafka: str, tmp_path: Path) -> None:
    """A worker frozen for longer than its session is succeeded; what it writes after thawing is void for everyone."""
    log, tea = Log(kafka), product()
    short = {"STAMPEDE_SESSION_TIMEOUT_S": "6"}
    with (
        worker(kafka, tmp_path, "inventory-a", **short) as first,
        worker(kafka, tmp_path, "inventory-b", **short) as second,
    ):
        first.await_ready()
        second.await_ready()
        log.ask([listing(tea, 500)])
        partition = partition_of(tea)
        with Crowd(log, tea, 700):
            await_decisions(log, tea, 10)
            eventually(lambda: owns(first, partition) != owns(second, partition), what="one owner")
            frozen, other = (first, second) if owns(first, partition) else (second, first)
            frozen.process.send_signal(signal.SIGSTOP)
            eventually(lambda: owns(other, partition), 60, "a successor")
            await_decisions(log, tea, 60)
            frozen.process.send_signal(signal.SIGCONT)
            eventually(lambda: frozen.process.poll() is not None or ready(frozen), 60, "the thawed one, ready or ended")
            await_decisions(log, tea, 10)
        table, answers, void = log.await_answers(partition)
        print(f"{void} void records")
        assert kinds(answers)["Reserved"] >= 500
        assert table.products[purchase(tea).product_id].available == 0


def await_decisions(log: Log, product_id: str, more: int) -> None:
    """Wait until so many more records are decided in the product's partition."""
    partition = partition_of(product_id)
    enough = log.ends(DECISIONS.name)[partition] + more
    eventually(lambda: log.ends(DECISIONS.name)[partition] >= enough, 60, f"{more} more decisions")


def ready(running: InventoryProcess) -> bool:
    """Whether a worker says that it owns and has loaded its partitions."""
    try:
        running.get("/readyz")
    except OSError:
        return False
    return True


def committed(kafka: str, partition: int) -> int:
    """The inventory group's committed offset: what KEDA sees."""
    group = consumer(kafka, **{"group.id": "inventory"})
    try:
        return int(group.committed([TopicPartition(REQUESTS.name, partition)], timeout=10)[0].offset)
    finally:
        group.close()


def test_a_snapshot_and_what_came_after_it_are_the_fold_from_the_beginning(kafka: str, tmp_path: Path) -> None:
    """A worker that loads from its predecessor's snapshot holds the very table that the whole log gives."""
    log, tea = Log(kafka), product()
    with worker(kafka, tmp_path, STAMPEDE_SNAPSHOT_DECISIONS_MIN="20") as running:
        running.await_ready()
        log.ask([listing(tea, 300)])
        for _ in range(60):
            log.ask([purchase(tea) for _ in range(10)])
        log.flush()
        log.await_answers(partition_of(tea))
        eventually(lambda: bool(snapshots(log, tea)), what="a snapshot")
        running.kill()
    log.ask([purchase(tea)])
    log.flush()
    with worker(kafka, tmp_path) as running:
        running.await_ready()
        table, _, _ = log.await_answers(partition_of(tea))
        assert running.get(f"/state?partition={partition_of(tea)}")["sha256"] == digest_of(table)


def snapshots(log: Log, product_id: str) -> list[SnapshotCommitted]:
    """The complete snapshots of a product's partition."""
    records = log.records(STOCK_SNAPSHOTS.name, partition_of(product_id))
    found = [decode_snapshot(record.value or b"") for record in records]
    return [record for record in found if isinstance(record, SnapshotCommitted)]


def test_the_group_offset_follows_also_over_records_the_stream_never_delivered(kafka: str, tmp_path: Path) -> None:
    """Faust's committed offset reaches the end of `requests`: the private parts of Faust we use are still there."""
    log, tea = Log(kafka), product()
    with worker(kafka, tmp_path) as running:
        running.await_ready()
        log.ask([listing(tea, 5)])
        log.ask([purchase(tea)])
        log.flush()
        _, answers, _ = log.await_answers(partition_of(tea))
        eventually(lambda: committed(kafka, partition_of(tea)) == len(answers), what="the committed offset at the end")


def ended(running: InventoryProcess, folder: Path) -> str:
    """Wait for the worker's end, within half a minute; what it said."""
    eventually(lambda: running.process.poll() is not None, 30, "the worker's end")
    assert running.process.returncode == 1
    return (folder / "inventory-0.log").read_text()


def test_a_ruined_log_stops_the_worker_with_one_sentence(tmp_path: Path) -> None:
    """A topic recreated under it, or while nobody runs; its head cut off; partitions added: it ends and says why."""
    with components() as alone:
        provision(alone.kafka, 1)
        admin, log = admin_client(alone.kafka), Log(alone.kafka)
        with worker(alone.kafka, tmp_path) as running:
            running.await_ready()
            for number in range(PARTITIONS):
                log.append(number, b"{}")
            log.flush()
            log.await_answers(0)
            admin.delete_topics([DECISIONS.name])[DECISIONS.name].result()
            assert "topic stampede.decisions is missing" in ended(running, tmp_path)
        provision(alone.kafka, 1)
        with worker(alone.kafka, tmp_path) as running:
            assert "topic stampede.decisions was deleted and recreated" in ended(running, tmp_path)


def test_a_log_without_its_head_or_with_other_partitions_is_not_decided_on(tmp_path: Path) -> None:
    """Records that are gone cannot be answered, and a product would move to another partition."""
    with components() as alone:
        provision(alone.kafka, 1)
        admin, log = admin_client(alone.kafka), Log(alone.kafka)
        for _ in range(3):
            log.append(0, b"{}")
        log.flush()
        admin.delete_records([TopicPartition(REQUESTS.name, 0, 2)])[TopicPartition(REQUESTS.name, 0)].result()
        with worker(alone.kafka, tmp_path) as running:
            assert "requests begins at 2 but 0 is not answered yet: it lost its head" in ended(running, tmp_path)
        assert log.records(DECISIONS.name, 0) == []
        admin.create_partitions([NewPartitions(REQUESTS.name, PARTITIONS + 1)])[REQUESTS.name].result()
        with worker(alone.kafka, tmp_path) as running:
            assert "has 13 partitions and must have 12" in ended(running, tmp_path)


def test_group_offsets_set_back_or_forth_are_a_hint_and_nothing_more(kafka: str, tmp_path: Path) -> None:
    """Whatever the group's offset says, each request keeps its one answer, and those it skips get theirs."""
    log, tea = Log(kafka), product()
    partition = partition_of(tea)
    log.ask([listing(tea, 5)])
    for shift in (-3, +3):
        for _ in range(5):
            log.ask([purchase(tea)])
        log.flush()
        with worker(kafka, tmp_path, STAMPEDE_SESSION_TIMEOUT_S="6") as running:
            running.await_ready()
            _, answers, _ = log.await_answers(partition)
        for _ in range(5):
            log.ask([purchase(tea)])
        log.flush()
        set_group_offset(kafka, partition, len(answers) + shift)
        with worker(kafka, tmp_path, STAMPEDE_SESSION_TIMEOUT_S="6") as running:
            running.await_ready()
            table, _, _ = log.await_answers(partition)
            assert running.get(f"/state?partition={partition}")["sha256"] == digest_of(table)


def set_group_offset(kafka: str, partition: int, offset: int) -> None:
    """Move the inventory group's offset, once the group has noticed that its member is dead."""
    group = consumer(kafka, **{"group.id": "inventory"})

    def moved() -> bool:
        try:
            group.commit(offsets=[TopicPartition(REQUESTS.name, partition, offset)], asynchronous=False)
        except KafkaException:
            return False
        return True

    try:
        eventually(moved, 30, "the group to be empty")
    finally:
        group.close()


def owns(running: InventoryProcess, partition: int) -> bool:
    """Whether this worker answers for a partition."""
    try:
        running.get(f"/state?partition={partition}")
    except OSError:
        return False
    return True


def test_what_cannot_be_read_becomes_a_dead_letter_and_the_rest_flows(kafka: str, tmp_path: Path) -> None:
    """Poison gets a deterministic answer and a letter with its very bytes; its good neighbours are decided."""
    log, tea = Log(kafka), product()
    poison = [b"\xff\xfe", b"", b"{", b'{"requests":[]}', b"[1]", None, b'{"requests":"x"}']
    good = encode_requests([purchase(tea)])
    mixed = good.replace(b'{"requests":[', b'{"requests":[{"type":"Nonsense"},')
    with worker(kafka, tmp_path) as running:
        running.await_ready()
        log.ask([listing(tea, 10)])
        for value in [*poison, mixed]:
            log.append(partition_of(tea), value)
        log.ask([purchase(tea)])
        log.flush()
        _, answers, _ = log.await_answers(partition_of(tea))
        assert running.process.poll() is None
    assert kinds(answers)["Unreadable"] >= len(poison) + 1
    letters = {record.value for record in log.records(DEAD_LETTERS.name, partition_of("stampede.requests"))}
    assert {value or b"" for value in poison} | {b'{"type":"Nonsense"}'} <= {value or b"" for value in letters}
