"""Redis that forgets: everything, what was newest, or what it has no room for."""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from redis import Redis

from tests.chaos.arena import Arena
from tests.chaos.faults.fault import Fault

ROOM_BYTES = 16 * 1024  # less than it holds
SAVED = "appendonlydir"


@contextmanager
def _redis(arena: Arena) -> Iterator[Redis]:
    client: Redis = Redis.from_url(arena.stack.redis, socket_timeout=5)
    try:
        yield client
    finally:
        client.close()


def _flushed(arena: Arena, _dice: Random, _seconds: float) -> bool:
    with _redis(arena) as client:
        known = client.dbsize()
        client.flushall()
    arena.tell(f"Redis is flushed of {known} keys")
    return known > 0


def _failed_over(arena: Arena, _dice: Random, seconds: float) -> bool:
    """As a replica that lagged `seconds` behind its primary and took its place."""
    home = arena.stack.layout.root / "redis"
    old = home / "older"
    shutil.copytree(home / SAVED, old)
    try:
        with _redis(arena) as client:
            before = _written(client)
            time.sleep(seconds)
            lost = _written(client) - before
        pid = arena.send("redis", signal.SIGSTOP)  # what it still writes must not come after what is put back
        _put_back(old, home / SAVED)
        arena.send("redis", signal.SIGKILL)
        arena.stack.await_restart("redis", pid)
    finally:
        shutil.rmtree(old, ignore_errors=True)
    arena.tell(f"Redis is what it was {seconds:.0f} s before: it lost {lost:,} bytes of its log")
    return lost > 0


def _written(client: Redis) -> int:
    about: dict[str, Any] = client.info("persistence")
    return int(about["aof_current_size"])


def _put_back(old: Path, place: Path) -> None:
    shutil.rmtree(place)
    old.rename(place)


def _evicting(arena: Arena, _dice: Random, seconds: float) -> bool:
    with _redis(arena) as client:
        before = int(client.info("stats")["evicted_keys"])
        room = int(client.info("memory")["used_memory"]) - ROOM_BYTES
        arena.tell(f"Redis has {room:,} bytes for {client.dbsize()} keys")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", room)
        try:
            time.sleep(seconds)
            evicted = int(client.info("stats")["evicted_keys"]) - before
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
    arena.tell(f"Redis evicted {evicted} keys")
    return evicted > 0


FAULTS = {
    "redis flushed": Fault("forgets everything", _flushed, "redis"),
    "redis failed over": Fault(
        "dies, and what takes its place is some seconds older", _failed_over, "redis", (3.0, 5.0)
    ),
    "redis evicting": Fault("has no room, and drops what was used longest ago", _evicting, "redis", (4.0, 6.0)),
}
