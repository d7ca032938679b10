"""Thousands of connections as raw bytes against a real gateway: no failure, no hang, nothing logged that was refused.

RAW_CASES and RAW_SEED choose how many and which; a failure names its seed and number.
"""

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import psutil
import pytest

from gateway.admission import IdentityKey, Subject
from stampede_schemas.codec import split_requests
from stampede_schemas.topics import REQUESTS
from tests.support import garbage
from tests.support.gateway import IDENTITY_KEY
from tests.support.inventory import Log
from tests.support.raw import Talk, talk
from tests.support.sale import Sale, buy, open_sale

CASES = int(os.environ.get("RAW_CASES", "6000"))
SEED = int(os.environ.get("RAW_SEED", "1"))
TOGETHER = 16
HANG_S_MAX = 5.0
CLOSED_S_MAX = 10.5
GROWTH_BYTES_MAX = 60_000_000
SLOW_BODY = b"POST /v1/purchases HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"


@pytest.fixture(scope="module")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sale]:
    """A gateway and an inventory for this module."""
    with open_sale(tmp_path_factory.mktemp("raw")) as running:
        yield running


@dataclass
class Heard:
    """What all connections together were told."""

    statuses: dict[int, int] = field(default_factory=dict)
    locations: set[str] = field(default_factory=set)


def exchange(port: int, one: garbage.Garbage, heard: Heard) -> None:
    """Send it, stop sending, and judge every answer until the server closes."""
    with talk(port, HANG_S_MAX) as connection:
        size = len(one.data) // one.pieces + 1
        for start in range(0, len(one.data), size):
            connection.send(one.data[start : start + size])
        connection.send(b"", finish=True)
        for _ in range(100):
            try:
                answer = connection.answer()
            except ConnectionResetError:
                return  # it went on sending after it was refused
            if answer is None:
                return
            heard.statuses[answer.status] = heard.statuses.get(answer.status, 0) + 1
            if answer.status >= 400:
                assert answer.problem
                assert answer.status < 500 or (answer.status, answer.problem) == (503, "overloaded")
            for line in answer.head.split("\r\n"):
                if line.lower().startswith("location: /v1/purchases/"):
                    heard.locations.add(line.rpartition("/")[2])


def logged(sale: Sale) -> set[str]:
    """The purchases in the log."""
    log = Log(sale.stack.kafka)
    records = (record for partition in range(REQUESTS.partitions) for record in log.records(REQUESTS.name, partition))
    requests = (msgspec.json.decode(raw) for record in records for raw in split_requests(record.value or b""))
    return {request["purchase_id"] for request in requests if request["type"] == "PurchaseRequested"}


@pytest.mark.timeout(600)
def test_thousands_of_odd_connections(sale: Sale) -> None:
    """Each ends within five seconds, in problems or honest answers; the log holds what was accepted, nothing else."""
    product = sale.product(1_000_000, per_buyer_limit=1_000)
    process = psutil.Process(sale.gateway.process.pid)
    drawn, heard = garbage.requests(SEED, product), Heard()
    cases = [drawn.draw() for _ in range(CASES)]

    def run(number: int) -> None:
        began = time.monotonic()
        try:
            exchange(sale.gateway.http, cases[number], heard)
        except (AssertionError, OSError) as error:
            raise AssertionError(f"seed {SEED}, case {number}: {cases[number].data[:2000]!r}: {error!r}") from error
        assert time.monotonic() - began < HANG_S_MAX, f"seed {SEED}, case {number} hung"

    with ThreadPoolExecutor(TOGETHER) as pool:
        warm = CASES // 10
        list(pool.map(run, range(warm)))
        before = process.memory_info().rss
        list(pool.map(run, range(warm, CASES)))
    print(f"{CASES} connections, seed {SEED}: {dict(sorted(heard.statuses.items()))}")
    assert {200, 400, 401, 404, 405, 413, 415, 422, 431} <= heard.statuses.keys()
    assert len(heard.locations) > CASES // 100
    identity = IdentityKey(IDENTITY_KEY)
    unheard = logged(sale) - heard.locations
    for number in range(2 * CASES):
        if identity.purchase_id(Subject("header", "ann"), "POST", "/v1/purchases", f"k{number}") in unheard:
            print([case for case in cases if f"Key: k{number}\r\n".encode() in case.data])
    assert logged(sale) == heard.locations
    assert process.memory_info().rss - before < GROWTH_BYTES_MAX
    assert "Traceback" not in sale.gateway.said()
    with sale.buyer() as ann:
        assert ann.get("/readyz").status_code == 200
        assert buy(ann, product, wait=5).status_code == 201


def dawdle(port: int, kind: int) -> float:
    """One connection that takes its time in its own way; how long it was borne."""
    chance, began = random.Random(kind), time.monotonic()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError), contextlib.closing(Talk(port, 1.0).socket) as one:
        body = kind % 4 == 1
        one.sendall((b"", SLOW_BODY, b"GET /v1/pro", b"")[kind % 4])
        if kind % 4 == 3:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        while time.monotonic() - began < 2 * CLOSED_S_MAX:
            if kind % 4 == 3:  # asks and asks, and reads nothing
                with contextlib.suppress(TimeoutError):
                    one.sendall(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
                continue
            if kind % 4:
                one.sendall(b"x" if body else chance.choice((b"a", b"b")))
            with contextlib.suppress(TimeoutError):
                if not one.recv(65_536):
                    break
    return time.monotonic() - began


@pytest.mark.timeout(120)
def test_those_who_dawdle_are_left_and_harm_nobody(sale: Sale) -> None:
    """200 slow connections of four kinds are gone after ten seconds; buyers meanwhile are served as ever."""
    product = sale.product(100)
    with ThreadPoolExecutor(200) as pool:
        slow = [pool.submit(dawdle, sale.gateway.http, number) for number in range(200)]
        with sale.buyer() as ann:
            while not all(one.done() for one in slow):
                began = time.monotonic()
                assert buy(ann, product).status_code in {202, 409}
                assert time.monotonic() - began < 1.0
                time.sleep(0.2)
        borne = [one.result() for one in slow]
    for kind in range(4):
        assert max(borne[kind::4]) < CLOSED_S_MAX, kind
