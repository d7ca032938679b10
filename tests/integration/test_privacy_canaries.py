"""Nothing that names a person, and no secret, is where it must not be (S19): a small sale with mistakes in it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
from confluent_kafka import Consumer, TopicPartition

from devstack.layout import Layout
from replay.canaries import forms
from stampede_schemas.topics import TOPICS
from tests.support.sale import listing, order
from tests.support.stack import LocalStack, eventually, stack

ENDED = {"confirmed", "released", "rejected"}


def sell(running: LocalStack, canaries: dict[str, str]) -> None:
    """People with telling names buy, ask, cancel and make mistakes, as do operators."""
    endpoints = running.endpoints
    admin = {"Authorization": f"Bearer {endpoints.admin_key}", "User-Agent": canaries["agent"]}
    with httpx.Client(base_url=endpoints.admin, headers=admin, timeout=10) as operator:
        answer = operator.post("/admin/v1/products", json=listing("lamp", 3, hold_ms=3_000))
        assert answer.status_code == 201, answer.text
        operator.get("/admin/v1/orders", params={"buyer_id": canaries["user"]})
        guess = {"Authorization": f"Bearer {canaries['guess']}"}
        assert operator.get("/admin/v1/orders", headers=guess).status_code in {401, 403}
    headers = {
        "X-User-Id": canaries["user"],
        "Authorization": f"Bearer {canaries['token']}",
        "From": canaries["email"],
        "X-Forwarded-For": canaries["address"],
        "Cookie": f"session={canaries['cookie']}",
        "User-Agent": canaries["agent"],
        "Referer": f"https://shop.example/{canaries['email']}",
        "baggage": f"user={canaries['user']}",
        "tracestate": f"a={canaries['cookie']}",
    }
    with httpx.Client(base_url=endpoints.gateway[0], headers=headers, timeout=10) as buyer:
        bought = []
        for number, method in enumerate(("ok", "declined", "ok", "unknown", "ok")):
            body = order("lamp") | {"payment_method": method}
            key = {"Idempotency-Key": f"{canaries['key']}-{number}", "Prefer": "wait=5"}
            answer = buyer.post("/v1/purchases", json=body, headers=key)
            if "location" in answer.headers:
                bought.append(answer.headers["location"])
        buyer.post(f"{bought[0]}/cancel", headers={"Idempotency-Key": canaries["key"]})
        for wrong in (
            {"email": canaries["email"]},
            {"quantity": canaries["email"]},
            {"payment_method": canaries["email"]},
        ):
            assert buyer.post("/v1/purchases", json=order("lamp") | wrong, headers=key).status_code == 422
        buyer.get(f"/v1/purchases/{canaries['path']}", params={"access_token": canaries["token"]})
        buyer.get("/v1/purchases", params={"cursor": canaries["cookie"]})
        eventually(lambda: all(buyer.get(at).json()["status"] in ENDED for at in bought[:3]), 30.0, "their ends")


def everything_said(running: LocalStack, folder: Path) -> None:
    """Every record of every topic with its headers, and every metric, as files in `folder`."""
    for role, live in running.endpoints.processes.items():
        for index, one in enumerate(live):
            if "ops" in one:
                (folder / f"{role}-{index}.metrics").write_bytes(httpx.get(f"{one['ops']}/metrics").content)
    consumer = Consumer({"bootstrap.servers": running.kafka, "group.id": uuid4().hex, "enable.auto.commit": False})
    try:
        for topic in TOPICS:
            with (folder / f"{topic.name}.topic").open("wb") as file:
                for partition in range(topic.partitions):
                    read(consumer, TopicPartition(topic.name, partition, 0), file.write)
    finally:
        consumer.close()


def read(consumer: Consumer, start: TopicPartition, write: Callable[[bytes], object]) -> None:
    """One partition from its beginning to its end."""
    _, end = consumer.get_watermark_offsets(start, timeout=10)
    consumer.assign([start])
    while end and consumer.position([start])[0].offset < end:
        record = consumer.poll(5)
        assert record is not None
        assert record.error() is None
        for part in (record.key(), record.value(), *(header[1] for header in record.headers() or ())):
            write(part.encode() if isinstance(part, str) else part or b"")
            write(b"\n")


def test_canaries_are_nowhere(tmp_path: Path) -> None:
    """Not in topics, rows, dead letters, logs, spans or metrics; and the search finds one that is put there."""
    canaries = {
        name: f"canary-{name}-{uuid4().hex}" for name in ("user", "token", "cookie", "agent", "key", "guess", "path")
    } | {"email": f"canary.{uuid4().hex}@person.example", "address": "203.0.113.217"}
    with stack() as running:
        layout: Layout = running.layout
        sell(running, canaries)
        everything_said(running, tmp_path)
        endpoints = running.endpoints
        passwords = [url.split("@")[0].rpartition(":")[2] for url in (endpoints.postgres, endpoints.redis)]
        secrets = [endpoints.admin_key, layout.secret("identity-key"), *(word for word in passwords if len(word) > 5)]
        for folder, pattern in ((layout.logs, "*.log"), (layout.spans, "*.jsonl")):
            for file in folder.glob(pattern):
                (tmp_path / f"{folder.name}-{file.name}").write_bytes(file.read_bytes())
        names = {file.suffix for file in tmp_path.iterdir()}
        assert names == {".metrics", ".topic", ".log", ".jsonl"}
        assert (tmp_path / "stampede.requests.topic").stat().st_size > 0
        command = [sys.executable, "-m", "replay", "verify", f"--endpoints={layout.endpoints}", "--rule=S19", "--json"]
        told = tmp_path.parent / f"{tmp_path.name}.json"
        told.write_text(json.dumps({"canaries": [*canaries.values(), *secrets], "files": [f"{tmp_path.name}/*"]}))
        done = subprocess.run([*command, "--canary", str(told)], capture_output=True, text=True, check=False)
        (rule,) = json.loads(done.stdout)["rules"]
        assert (rule["verdict"], rule["first"]) == ("holds", []), (rule["first"], list(canaries))
        (tmp_path / "one.log").write_bytes(b"x" + forms(canaries["email"])[0])
        done = subprocess.run([*command, "--canary", str(told)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert json.loads(done.stdout)["rules"][0]["first"][0]["at"].endswith("one.log")
