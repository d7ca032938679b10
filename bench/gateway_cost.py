"""What a purchase costs, accepted and turned away: a real gateway, log, inventory and limiter, over HTTP.

`python -m bench.gateway_cost` sends purchases of different buyers over kept-alive connections: rounds of accepted ones,
then rounds for a product that is sold out, at each number of connections. It prints the wanted answers a second, how
many others there were, and for each answer, wanted or not, the CPU microseconds of the gateway, Redis, the broker,
Postgres (all threads and child processes) and of the driver itself.
Some minutes, loopback only, nothing is left behind.
"""

import argparse
import asyncio
import itertools
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import psutil

from tests.support.builders.gateway import GatewayProcess
from tests.support.processes.sale import Sale, buy, open_sale
from tests.support.processes.stack import eventually

CONNECTIONS = (64, 256)
ROUND = 10_000
WARM_UP = 2_000
ROUND_S_MAX = 60.0  # no request is begun later than this; what was answered by then counts
ANSWER_S_MAX = 10.0
IDLE_S = 5.0
LIMITS = "user:token_bucket:5/s,user:sliding_window:60/min,address:token_bucket:1000000/s"
ACCEPTED, SOLD_OUT, UNANSWERED = "202", "409 sold-out", "no answer"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_KIND = re.compile(rb'"type": *"/problems/([a-z-]+)"')


class Crowd:
    """Purchases of one product, each by a buyer of its own, and what they were told. It begins none after its time."""

    def __init__(self, product_id: str, numbers: Iterator[int], count: int) -> None:
        self.answers = Counter[str]()
        self._product_id, self._numbers = product_id, itertools.islice(numbers, count)
        self._end = time.monotonic() + ROUND_S_MAX
        self.done = False

    def request(self) -> bytes:
        """The next purchase, as a client library sends it; nothing: that was all."""
        number = next(self._numbers, None)
        if number is None or time.monotonic() > self._end:
            self.done = True
            return b""
        body = f'{{"product_id":"{self._product_id}","quantity":1}}'
        return (
            f"POST /v1/purchases HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"x-user-id: buyer-{number}\r\nidempotency-key: key-{number}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()


class Connection(asyncio.Protocol):
    """The next purchase as soon as the one before is answered. `ended` is set when the connection is."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd, self._received, self._waiting = crowd, b"", False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Count an answer once it is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or not length or len(body) < int(length[1]):
            return
        self._crowd.answers[_said(head, body)] += 1
        self._received, self._waiting = b"", False
        self._ask()

    def connection_lost(self, _error: Exception | None) -> None:
        """End; the gateway closed it, or we did."""
        if self._waiting:
            self._crowd.answers[UNANSWERED] += 1
        if not self.ended.done():
            self.ended.set_result(None)

    def _ask(self) -> None:
        if self._transport.is_closing():
            return
        if request := self._crowd.request():
            self._waiting = True
            self._transport.write(request)
        else:
            self._transport.close()


def _said(head: bytes, body: bytes) -> str:
    status = head[9:12].decode()
    kind = None if status == ACCEPTED else _KIND.search(body)
    return f"{status} {kind[1].decode()}" if kind else status


async def send(port: int, crowd: Crowd, connections: int) -> None:
    """All of them, over so many connections at once; one that the gateway closes is opened again."""
    loop, transports = asyncio.get_running_loop(), set[asyncio.Transport]()

    async def keep_open() -> None:
        while not crowd.done:
            transport, connection = await loop.create_connection(lambda: Connection(crowd), "127.0.0.1", port)
            transports.add(transport)
            await connection.ended
            transports.discard(transport)

    try:
        async with asyncio.timeout(ROUND_S_MAX + ANSWER_S_MAX):
            await asyncio.gather(*(keep_open() for _ in range(connections)))
    except TimeoutError:
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)  # until each knows that its connection is lost


class Meter:
    """CPU seconds of the processes behind a sale, by name."""

    def __init__(self, sale: Sale, gateway: GatewayProcess) -> None:
        self._pids = {"gateway": gateway.process.pid}
        for role in ("redis", "kafka", "postgres"):
            self._pids[role] = sale.stack.endpoints.processes[role][0]["pid"]

    def read(self) -> dict[str, float]:
        """So far, since each began."""
        return {name: self._cpu_s(psutil.Process(pid)) for name, pid in self._pids.items()} | {"driver": process_time()}

    @staticmethod
    def _cpu_s(process: psutil.Process) -> float:
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(each.user + each.system for each in times)


@dataclass(frozen=True)
class Round:
    """What one round showed: answers of the wanted kind a second, CPU-us for each answer by process, other answers."""

    rate: float
    cpu_us: dict[str, float]
    apart: dict[str, int]


def play(port: int, meter: Meter, crowd: Crowd, connections: int, wanted: str) -> Round:
    """One round."""
    before, began = meter.read(), time.monotonic()
    asyncio.run(send(port, crowd, connections))
    took_s, after = time.monotonic() - began, meter.read()
    cpu_us = {name: (after[name] - before[name]) / max(1, crowd.answers.total()) * 1e6 for name in after}
    return Round(crowd.answers.pop(wanted, 0) / took_s, cpu_us, dict(crowd.answers))


def told(name: str, number: int, it: Round) -> str:
    """A round in a line."""
    costs = ", ".join(f"{process} {us:.1f}" for process, us in it.cpu_us.items())
    return f"{name}, round {number}: {it.rate:,.0f}/s; CPU-us an answer: {costs}; apart: {it.apart or 'none'}"


def table(rounds: dict[str, list[Round]]) -> str:
    """The summary, as Markdown."""
    names = list(next(iter(rounds.values()))[0].cpu_us)
    lines = [
        "Median (least to most); wanted answers a second; CPU-us for each answer, wanted or not, by process.",
        "",
        f"| what | a second | {' | '.join(names)} | other answers |",
        f"|---|{'---:|' * (len(names) + 2)}",
    ]
    for what, those in rounds.items():
        costs = " | ".join(_spread([it.cpu_us[name] for it in those]) for name in names)
        apart = sum(sum(it.apart.values()) for it in those)
        lines.append(f"| {what} | {_spread([it.rate for it in those])} | {costs} | {apart:,} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def sold_out(sale: Sale, gateway: GatewayProcess) -> str:
    """A product of one unit, bought; this gateway knows it."""
    product_id = sale.product(1)
    with sale.buyer(gateway=gateway) as buyer:
        answer = buy(buyer, product_id, wait=5)
        assert answer.status_code == 201, answer.text
        eventually(lambda: buyer.get(f"/v1/products/{product_id}").json()["available"] == 0, 10, "sold out")
    return product_id


def measure(sale: Sale, gateway: GatewayProcess, rounds: int, connections: Sequence[int]) -> dict[str, list[Round]]:
    """Warm up, then each kind of round in turn; by what it is called."""
    meter, numbers, found = Meter(sale, gateway), itertools.count(), dict[str, list[Round]]()
    on_sale, empty = sale.product(10_000_000), sold_out(sale, gateway)
    for product_id in (on_sale, empty):
        asyncio.run(send(gateway.http, Crowd(product_id, numbers, WARM_UP), connections[0]))
    before = meter.read()
    time.sleep(IDLE_S)
    idle = {name: (cpu_s - before[name]) / IDLE_S * 1e3 for name, cpu_s in meter.read().items()}
    print("idle, CPU-ms a second:", ", ".join(f"{name} {ms:.1f}" for name, ms in idle.items()), flush=True)
    plan = [(f"accepted, {connections[0]} connections", on_sale, ACCEPTED, connections[0])]
    plan += [(f"sold out, {count} connections", empty, SOLD_OUT, count) for count in connections]
    for what, product_id, wanted, count in plan:
        found[what] = []
        for number in range(1, rounds + 1):
            found[what].append(play(gateway.http, meter, Crowd(product_id, numbers, ROUND), count, wanted))
            print(told(what, number, found[what][-1]), flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help=f"of {ROUND} purchases each (default 4)")
    parser.add_argument(
        "--connections",
        type=int,
        nargs="+",
        default=CONNECTIONS,
        help="how many at once: one or more numbers for refusals, the first for accepted ones (default 64 256)",
    )
    options = parser.parse_args()
    with TemporaryDirectory() as folder, open_sale(Path(folder)) as sale:
        own = Path(folder) / "measured"
        own.mkdir()
        gateway = GatewayProcess(sale.stack, own, STAMPEDE_LIMITS=LIMITS, STAMPEDE_TRACE_SAMPLE="0.01")
        try:
            gateway.await_ready()
            print("\n" + table(measure(sale, gateway, options.rounds, options.connections)))
        finally:
            gateway.close()


if __name__ == "__main__":
    main()
