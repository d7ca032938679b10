"""Thousands of connections as raw bytes against a real gateway: no failure, no hang, nothing logged that was refused.

RAW_CASES and RAW_SEED choose how many and which; a failure names its seed and number.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import psutil
import pytest

from stampede_schemas.codec import split_requests
from stampede_schemas.topics import REQUESTS
from tests.support.builders import garbage
from tests.support.faults.raw import Talk, talk
from tests.support.processes.inventory import Log
from tests.support.processes.sale import Sale, buy, open_sale
from tests.support.processes.stack import eventually

CASES = int(os.environ.get("RAW_CASES", "6000"))
SEED = int(os.environ.get("RAW_SEED", "1"))
TOGETHER = 16
HANG_S_MAX = 5.0
BORNE_S_MAX = 25.0  # the limit is ten seconds; without one they would stay for ever
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
    assert logged(sale) == heard.locations
    assert process.memory_info().rss - before < GROWTH_BYTES_MAX
    failures = [line for line in sale.gateway.said().splitlines() if "Traceback" in line]
    assert not failures, failures[0]
    with sale.buyer() as ann:
        assert ann.get("/readyz").status_code == 200
        assert buy(ann, product, wait=5).status_code == 201


def dawdle(port: int, kind: int) -> float:
    """One connection that takes its time in its own way; how long it was borne."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError), contextlib.closing(Talk(port, 1.0).socket) as one:
        one.sendall((b"", SLOW_BODY, b"GET /v1/pro")[kind])
        while time.monotonic() - began < BORNE_S_MAX:
            if kind:
                one.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if not one.recv(65_536):
                    break
    return time.monotonic() - began


def deaf(port: int) -> socket.socket:
    """One that asks for a lot and reads nothing."""
    one = Talk(port, 0.5).socket
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    with contextlib.suppress(TimeoutError):
        one.sendall(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    return one


@pytest.mark.timeout(120)
def test_those_who_dawdle_are_left_and_harm_nobody(sale: Sale) -> None:
    """200 slow connections of four kinds are gone after ten seconds; buyers meanwhile are served as ever."""
    product, process = sale.product(100), psutil.Process(sale.gateway.process.pid)

    def there() -> int:
        open_ones = (one for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED)
        return sum(one.laddr.port == sale.gateway.http for one in open_ones)

    with ThreadPoolExecutor(150) as pool, contextlib.ExitStack() as stack, sale.buyer() as ann:
        for _ in range(50):
            stack.callback(deaf(sale.gateway.http).close)
        served = 0
        slow = [pool.submit(dawdle, sale.gateway.http, number % 3) for number in range(150)]
        while not all(one.done() for one in slow):
            assert buy(ann, product).status_code in {202, 409}
            served += 1
            time.sleep(0.2)
        assert served > 10, "one after the other, while the slow ones are there"
        assert max(one.result() for one in slow) < BORNE_S_MAX
        eventually(lambda: there() <= 1, what="the end of those who do not read")
