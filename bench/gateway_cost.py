"""What an accepted purchase costs the gateway in CPU time: a real gateway, log, inventory and limiter, over HTTP.

`python -m bench.gateway_cost` sends some 20,000 purchases of different buyers over kept-alive connections and prints
the CPU microseconds of the gateway's process (all its threads) per accepted one, round by round.
About a minute, loopback only, nothing is left behind.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.support.gateway import GatewayProcess
from tests.support.sale import open_sale

CONNECTIONS = 64
ROUND = 5_000
LIMITS = "user:token_bucket:5/s,user:sliding_window:60/min,address:token_bucket:1000000/s"


def request(product_id: str, number: int) -> bytes:
    """One purchase of a buyer of its own, as a client library sends it."""
    body = f'{{"product_id":"{product_id}","quantity":1}}'
    return (
        f"POST /v1/purchases HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"x-user-id: buyer-{number}\r\nidempotency-key: key-{number}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def buy(port: int, product_id: str, numbers: Iterator[int], last: int) -> None:
    """One connection: the next purchase as soon as the one before is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (number := next(numbers)) < last:
        writer.write(request(product_id, number))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(f"purchase {number} was answered {head.decode()}")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()


async def sell(port: int, product_id: str, first: int, last: int) -> None:
    """All purchases with these numbers."""
    numbers = count(first)
    await asyncio.gather(*(buy(port, product_id, numbers, last) for _ in range(CONNECTIONS)))


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of all its threads so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help=f"of {ROUND} purchases (default 4)")
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as folder, open_sale(Path(folder)) as sale:
        own = Path(folder) / "measured"
        own.mkdir()
        gateway = GatewayProcess(sale.stack, own, STAMPEDE_LIMITS=LIMITS, STAMPEDE_TRACE_SAMPLE="0.01")
        try:
            gateway.await_ready()
            product_id = sale.product(10_000_000)
            asyncio.run(sell(gateway.http, product_id, 0, ROUND))  # warms up
            process, costs = psutil.Process(gateway.process.pid), list[float]()
            for number in range(1, rounds + 1):
                before, began = cpu_s(process), time.monotonic()
                asyncio.run(sell(gateway.http, product_id, number * ROUND, (number + 1) * ROUND))
                costs.append((cpu_s(process) - before) / ROUND * 1e6)
                rate = ROUND / (time.monotonic() - began)
                print(f"round {number}: {costs[-1]:.1f} CPU-us per accepted purchase, {rate:,.0f}/s", flush=True)
            print(f"median {statistics.median(costs):.1f}, least {min(costs):.1f} CPU-us per accepted purchase")
        finally:
            gateway.close()


if __name__ == "__main__":
    main()
