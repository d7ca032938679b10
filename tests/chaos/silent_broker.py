"""A broker that is silent: frozen, not dead. `python -m tests.chaos.silent_broker 60 180` freezes it for so long.

Connections stay open and nothing answers, which is told apart from an end only by waiting. No process of ours may end
of it, none may say what is not so, and all go on once the broker does.
"""

import contextlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple
from uuid import uuid4

import httpx

from stampede_schemas.topics import PARTITIONS, partition_of
from tests.support.processes.sale import buy, listing
from tests.support.processes.stack import LocalStack, eventually, stack

OURS = ("gateway", "inventory", "order-writer", "ratelimit")
DECIDED_S_MAX = 10.0
CONFIRMED_S_MAX = 20.0
LOOK_EVERY_S = 0.5
BUY_EVERY_S = 0.02
# What a service says when it takes a silent broker for something else.
UNTRUE = ("Traceback", " stops: ", "is missing", "recreated", "lost its", "is gone", "has ended", "must have")


class Found(NamedTuple):
    """What came of it."""

    frozen_s: float
    ended: list[str]  # processes that are others than before
    untrue: list[str]  # lines of logs and reasons of /livez
    decided_s: float  # from the broker's return to a decision in each partition
    confirmed_s: float  # to a confirmed order in each

    @property
    def well(self) -> bool:
        """Whether all was as it must be."""
        return not self.ended and not self.untrue and self.decided_s <= DECIDED_S_MAX


class Sale:
    """One product in each partition, and buyers who go on buying."""

    def __init__(self, running: LocalStack) -> None:
        self._endpoints = running.endpoints
        names = (f"tea-{uuid4().hex[:8]}" for _ in itertools.count())
        by_partition: dict[int, str] = {}
        while len(by_partition) < PARTITIONS:
            name = next(names)
            by_partition.setdefault(partition_of(name), name)
        self._products = list(by_partition.values())
        headers = {"Authorization": f"Bearer {self._endpoints.admin_key}"}
        with httpx.Client(base_url=self._endpoints.admin, headers=headers, timeout=10) as operator:
            for name in self._products:
                answer = operator.post("/admin/v1/products", json=listing(name, 10**6))
                assert answer.status_code == 201, answer.text

    def _buyer(self) -> httpx.Client:
        return httpx.Client(base_url=self._endpoints.gateway[0], headers={"X-User-Id": uuid4().hex}, timeout=3)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Buyers for the length of a block, whatever they are told."""
        over = threading.Event()

        def go_on() -> None:
            for name in itertools.cycle(self._products):
                if over.wait(BUY_EVERY_S):
                    return
                with contextlib.suppress(httpx.TransportError), self._buyer() as buyer:
                    buy(buyer, name)

        threads = [threading.Thread(target=go_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def sold_everywhere(self, status: str, wait_s: float) -> float:
        """Buy in each partition until each has sold; the seconds until the purchase has that status."""
        began = time.monotonic()
        keys = {name: uuid4().hex for name in self._products}
        with contextlib.ExitStack() as clients:
            buyers = {name: clients.enter_context(self._buyer()) for name in self._products}

            def sold() -> bool:
                for name in list(keys):
                    with contextlib.suppress(httpx.TransportError):
                        answer = buy(buyers[name], name, keys[name], wait=1)
                        if answer.is_success and answer.json()["status"] in ("confirmed", status):
                            del keys[name]
                return not keys

            eventually(sold, wait_s, f"a purchase that is {status} in each partition")
        return time.monotonic() - began


def freeze(running: LocalStack, seconds: float) -> Found:
    """Freeze the broker of a running stack in the middle of a sale."""
    sale = Sale(running)
    sale.sold_everywhere("confirmed", 60)
    before, said = _ours(running), {name: len(running.log(name)) for name in _ours(running)}
    reasons: set[str] = set()
    with sale.busy():
        running.kill("kafka", signal.SIGSTOP)
        try:
            over = time.monotonic() + seconds
            while time.monotonic() < over:
                reasons |= _reasons(before)
                time.sleep(LOOK_EVERY_S)
        finally:
            running.kill("kafka", signal.SIGCONT)
        decided_s = sale.sold_everywhere("reserved", 60 + seconds)
        confirmed_s = sale.sold_everywhere("confirmed", 60 + seconds) + decided_s
        reasons |= _reasons(before)
    after = _ours(running)
    ended = [name for name in before if after[name][0] != before[name][0]]
    lines = [f"{name}: {line}" for name in said for line in running.log(name)[said[name] :].splitlines()]
    untrue = [line for line in lines if any(word in line for word in UNTRUE)]
    return Found(seconds, ended, [*untrue, *reasons], decided_s, confirmed_s)


def _ours(running: LocalStack) -> dict[str, tuple[int, str]]:
    """By name: pid and ops address."""
    rows = running.status().items()
    return {name: (row["pid"], row["ops"]) for name, row in rows if name.startswith(OURS)}


def _reasons(processes: dict[str, tuple[int, str]]) -> set[str]:
    """What is wrong with those that are not live."""
    found: set[str] = set()
    for name, (_, ops) in processes.items():
        try:
            answer = httpx.get(f"{ops}/livez", timeout=5)
        except httpx.TransportError as error:
            found.add(f"{name} /livez: {error!r}")
        else:
            if not answer.is_success:
                found.add(f"{name} /livez: {answer.text}")
    return found


def main() -> int:
    """Freeze for each of the given seconds, on one stack; 1 if anything was not as it must be."""
    wrong = 0
    with stack(inventory=2) as running:
        for seconds in map(float, sys.argv[1:]):
            found = freeze(running, seconds)
            print(found, flush=True)
            wrong |= not found.well
    return wrong


if __name__ == "__main__":
    sys.exit(main())
