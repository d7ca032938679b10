"""A local stack that believes tokens: the command that prints them, the README's lines, and what is left of a person.

Nothing that names one, and no secret, is where it must not be (S19): a small sale with mistakes in it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from devstack.layout import Layout
from replay.canaries import forms
from stampede_schemas.topics import TOPICS, Topic
from tests.support.processes.sale import buy, listing, order
from tests.support.processes.stack import LocalStack, eventually, stack
from tests.support.readme import README, buying, sold_and_taken_back, typed

ENDED = {"confirmed", "released", "rejected"}


@pytest.fixture(scope="module")
def running() -> Iterator[LocalStack]:
    """One stack for this module."""
    with stack({"STAMPEDE_AUTH": "jwt"}) as found:
        yield found


def token(running: LocalStack, user: str, role: str = "") -> str:
    """What `devstack token` prints."""
    command = [sys.executable, "-m", "devstack", "token", f"--dir={running.layout.root}"]
    command += ["--user", user, "--role", role]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def bearer(running: LocalStack, user: str, role: str = "") -> dict[str, str]:
    """The header with such a token."""
    return {"Authorization": f"Bearer {token(running, user, role)}"}


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
        "X-User-Id": canaries["header"],
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
        assert len(bought) >= 3, "three units were to be sold"
        buyer.post(f"{bought[0]}/cancel", headers={"Idempotency-Key": canaries["key"]})
        for wrong in (
            {"email": canaries["email"]},
            {"quantity": canaries["email"]},
            {"payment_method": canaries["email"]},
        ):
            assert buyer.post("/v1/purchases", json=order("lamp") | wrong, headers=key).status_code == 422
        wrong_token = {"Authorization": f"Bearer {canaries['wrong']}"}
        assert buyer.post("/v1/purchases", json=order("lamp"), headers=key | wrong_token).status_code == 401
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
                read(consumer, topic, file)
    finally:
        consumer.close()


def read(consumer: Consumer, topic: Topic, file: BinaryIO) -> None:
    """All partitions from their beginnings to their ends."""
    starts = [TopicPartition(topic.name, partition, 0) for partition in range(topic.partitions)]
    ends = {start.partition: consumer.get_watermark_offsets(start, timeout=10)[1] for start in starts}
    filled = [start for start in starts if ends[start.partition]]
    consumer.assign(filled)
    while any(at.offset < ends[at.partition] for at in consumer.position(filled)):
        record = consumer.poll(5)
        assert record is not None
        assert record.error() is None
        for part in (record.key(), record.value(), *(header[1] for header in record.headers() or ())):
            file.write(part.encode() if isinstance(part, str) else part or b"")
            file.write(b"\n")


def test_a_stack_with_tokens_is_used_with_printed_ones(running: LocalStack) -> None:
    """An operator lists by token, a buyer buys by token, X-User-Id is nobody; endpoints.json says so."""
    endpoints = running.endpoints
    assert endpoints.auth == "jwt"
    with httpx.Client(base_url=endpoints.admin, headers=bearer(running, "op", "admin"), timeout=10) as operator:
        assert operator.post("/admin/v1/products", json=listing("mug")).status_code == 201
    with httpx.Client(base_url=endpoints.gateway[0], headers=bearer(running, "ann"), timeout=10) as ann:
        assert buy(ann, "mug", wait=5).status_code == 201
    with httpx.Client(base_url=endpoints.gateway[0], headers={"X-User-Id": "ann"}, timeout=10) as nobody:
        assert buy(nobody, "mug").status_code == 401
    assert httpx.get(f"{endpoints.admin}/admin/v1/orders", headers=bearer(running, "ann")).status_code == 403


def test_the_curl_lines_of_the_readme_work_with_a_token(running: LocalStack, tmp_path: Path) -> None:
    """With the one line changed that the README says must be."""
    told = re.search(r"`(ME=.*make -s token.*)`", README)
    assert told is not None
    block, changed = re.subn(r"^ME=.*$", lambda _: told[1], buying(), flags=re.MULTILINE)
    assert changed == 1
    assert sold_and_taken_back(typed(block, running, tmp_path))


def test_canaries_are_nowhere(running: LocalStack, tmp_path: Path) -> None:
    """Not in topics, rows, dead letters, logs, spans or metrics; and the search finds one that is put there."""
    canaries = {
        name: f"canary-{name}-{uuid4().hex}"
        for name in ("user", "header", "wrong", "cookie", "agent", "key", "guess", "path")
    } | {"email": f"canary.{uuid4().hex}@person.example", "address": "203.0.113.217"}
    canaries["token"] = token(running, canaries["user"])
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
