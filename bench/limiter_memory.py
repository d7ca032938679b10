"""What a million callers cost the limiter in memory: in Redis, where their keys expire, and in a gateway without Redis.

`python -m bench.limiter_memory` asks once for each of 1,000,000 users and addresses, on a server of its own, and prints
what the server holds at most, what it holds once the longest window has passed, and what a process on its own holds.
About two minutes, loopback only, nothing is left behind.
"""

import argparse
import asyncio
import time

import psutil
from redis.asyncio import Redis

from ratelimit.limiter import LOCAL_KEYS_MAX, Limiter, Subject, connect
from ratelimit.policy import parse_policies
from tests.support.processes.redis_server import RedisServer, redis_server

LINE = "user:token_bucket:5/s,user:sliding_window:60/min,address:token_bucket:200/s"
LONGEST_S = 60
BATCH = 100
WAIT_S = 1.0  # so that a busy machine is not taken for an outage
PAUSE_S = 0.1
MIB = 1024 * 1024


def callers(number: int) -> list[Subject]:
    """That many users, each with an address of its own."""
    return [Subject(f"b{n:032x}", f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}") for n in range(number)]


async def ask(limiter: Limiter, subjects: list[Subject], *, wait: bool) -> None:
    """All of them; with `wait`, again and again until Redis itself has judged each (a busy machine makes it late)."""
    for start in range(0, len(subjects), BATCH):
        while (await limiter.check(subjects[start : start + BATCH]))[0].degraded and wait:
            await asyncio.sleep(PAUSE_S)
            await limiter.refresh()


async def held(redis: Redis) -> str:
    """What the server holds."""
    memory = (await redis.info("memory"))["used_memory"] / MIB
    return f"{await redis.dbsize():,} keys, {memory:.0f} MiB"


async def measure(server: RedisServer, number: int) -> None:
    """Ask, wait, ask without the server."""
    subjects = callers(number)
    async with connect(server.url) as redis:
        limiter = Limiter(redis, parse_policies(LINE), wait_s=WAIT_S)
        await limiter.open()
        print(f"Redis before: {await held(redis)}")
        began = time.monotonic()
        await ask(limiter, subjects, wait=True)
        print(f"{number:,} callers in {time.monotonic() - began:.0f} s")
        print(f"Redis at most: {await held(redis)}")
        await asyncio.sleep(LONGEST_S + 15)
        print(f"Redis once the longest window has passed: {await held(redis)}")
        server.stop()
        process = psutil.Process()
        before = process.memory_info().rss
        await ask(limiter, subjects, wait=False)
        after = process.memory_info().rss
        print(f"A process without Redis: {(after - before) / MIB:.0f} MiB more, for at most {LOCAL_KEYS_MAX:,} keys")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--callers", type=int, default=1_000_000)
    number = parser.parse_args().callers
    with redis_server() as server:
        asyncio.run(measure(server, number))


if __name__ == "__main__":
    main()
