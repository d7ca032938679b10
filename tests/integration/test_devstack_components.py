"""The components for real: killed with -9 they come back with their data, from the machine and from wheels."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from psutil import Process
from redis import Redis
from redis.exceptions import AuthenticationError

from devstack import control, endpoints, orphans
from devstack.layout import Layout
from tests.support.processes.stack import LocalStack, components, eventually


@pytest.fixture(scope="module", params=["auto", "wheels"])
def own(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    """Components of this module's own, because they are killed."""
    with components({"STAMPEDE_COMPONENTS": request.param}) as running:
        yield running


def test_kafka_keeps_its_records_over_a_kill(own: LocalStack) -> None:
    """A record that was acknowledged before kill -9 of the broker is read afterwards at the same address."""
    topic, value = f"kept-{uuid.uuid4().hex}", b"a record"
    admin = AdminClient({"bootstrap.servers": own.kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": own.kafka, "acks": "all"})
    producer.produce(topic, value)
    assert producer.flush(30) == 0
    address, pid = own.kafka, own.kill("kafka")
    own.await_restart("kafka", pid)
    assert own.kafka == address
    consumer = Consumer({"bootstrap.servers": address, "group.id": topic, "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe([topic])
        message = consumer.poll(30)
        assert message is not None
        assert message.value() == value
    finally:
        consumer.close()


async def test_postgres_keeps_its_rows_over_a_kill(own: LocalStack) -> None:
    """A row that was committed before kill -9 is there afterwards, and a session that was busy does not hinder it."""
    busy = await asyncpg.connect(own.postgres)
    await busy.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
    await busy.execute("INSERT INTO kept VALUES ('a row')")
    pid = own.kill("postgres")
    own.await_restart("postgres", pid)
    busy.terminate()
    connection = await asyncpg.connect(own.postgres)
    assert await connection.fetchval("SELECT value FROM kept") == "a row"
    assert await connection.fetchval("SHOW fsync") == "on"
    await connection.close()


def test_redis_keeps_its_keys_over_a_kill(own: LocalStack) -> None:
    """A key that was written to the append-only file before kill -9 is there afterwards."""
    with Redis.from_url(own.redis) as client:
        client.set("kept", "a key")
        eventually(lambda: dict(client.info("persistence"))["aof_buffer_length"] == 0, what="the write to the file")
    pid = own.kill("redis")
    own.await_restart("redis", pid)
    with Redis.from_url(own.redis) as client:
        assert client.get("kept") == b"a key"


async def test_strangers_are_kept_out(own: LocalStack) -> None:
    """Postgres and Redis want a password although they listen on loopback only."""
    with Redis(port=urlsplit(own.redis).port or 0) as client, pytest.raises(AuthenticationError):
        client.ping()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(port=urlsplit(own.postgres).port, host="127.0.0.1", user="stampede", password="guess")


def test_a_second_start_and_a_busy_port_are_one_sentence(own: LocalStack, tmp_path: Path) -> None:
    """A stack that runs already and a configured port that is taken end `up` with a sentence and exit code 1."""
    second = _devstack("up", f"--dir={own.layout.root}")
    assert second.returncode == 1
    assert "already runs" in second.stderr
    taken = own.kafka.rpartition(":")[2]
    busy = _devstack("up", "--components-only", f"--dir={tmp_path}", f"--kafka-port={taken}")
    assert busy.returncode == 1
    assert f"Port {taken}, configured for kafka, is used by another program" in busy.stderr
    assert "Traceback" not in second.stderr + busy.stderr


def test_after_a_killed_supervisor_the_next_start_ends_its_orphans(tmp_path: Path) -> None:
    """kill -9 of the supervisor leaves its children; the next `up` ends them and takes the same ports; `down` stops."""
    folder = f"--dir={tmp_path}"
    up = ("up", "--detach", "--components-only", folder)
    try:
        assert _devstack(*up).returncode == 0
        layout = Layout(tmp_path)
        before = endpoints.read(layout.endpoints)
        left = [Process(one["pid"]) for role in ("kafka", "postgres", "redis") for one in before.processes[role]]
        supervisor = Process(control.call(layout, "status")["pid"])
        supervisor.kill()
        supervisor.wait(10)
        assert all(process.is_running() for process in left)
        again = _devstack(*up)
        assert again.returncode == 0, again.stderr
        assert not any(process.is_running() for process in left)
        after = endpoints.read(layout.endpoints)
        assert (after.kafka, after.postgres, after.redis) == (before.kafka, before.postgres, before.redis)
        assert layout.endpoints.stat().st_mode & 0o777 == 0o600
        assert _devstack("down", folder).returncode == 0
        assert orphans.find(layout.pids) == []
        assert _devstack("status", folder).returncode == 1
    finally:
        cleaned = _devstack("clean", folder)
    assert cleaned.returncode == 0
    assert not tmp_path.exists()


def _devstack(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "devstack", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
