"""The watcher beside Redis, on a real one: what was forgotten is noted, and what was not is not forgiven."""

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.chaos.edge.account import Memory
from tests.chaos.edge.watch import Watch, watching
from tests.support.processes.redis_server import RedisServer, redis_server
from tests.support.processes.stack import eventually


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with redis_server() as running:
        yield running


def looked(watch: Watch) -> None:
    """Wait until it has seen what there is to see now."""
    before = watch.memory.looks
    eventually(lambda: watch.memory.looks > before + 1, what="two looks")


def counts(memory: Memory) -> tuple[int, int, int]:
    """Losses, absences, evicted keys."""
    return len(memory.lost), len(memory.away), len(memory.evicted)


def test_a_flush_is_a_loss_within_a_few_looks(server: RedisServer) -> None:
    """And nothing else is."""
    with watching(server.url) as watch:
        looked(watch)
        assert counts(watch.memory) == (0, 0, 0)
        server.forget()
        looked(watch)
        assert counts(watch.memory) == (1, 0, 0)
        (lost,) = watch.memory.lost
        assert lost.to_ms - lost.from_ms < 1_000


def test_a_memory_that_is_thrown_back_is_lost_one_that_comes_back_whole_was_only_away(server: RedisServer) -> None:
    """Killed and started with an older copy; frozen and thawed."""
    with watching(server.url) as watch:
        looked(watch)
        server.save()
        looked(watch)
        server.stop()
        server.start()
        looked(watch)
        assert counts(watch.memory) == (1, 1, 0)
        server.freeze()
        try:
            eventually(lambda: not watch.answered, what="no answer")
        finally:
            server.thaw()
        looked(watch)
        assert counts(watch.memory) == (1, 2, 0)


def test_evicted_keys_are_known_by_name_and_those_of_an_earlier_watch_are_not_counted(server: RedisServer) -> None:
    """Each of them once."""
    with watching(server.url) as watch, Redis.from_url(server.url) as client:
        looked(watch)
        for number in range(200):
            client.set(f"key-{number}", "x" * 1_000)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 20_000)
        client.set("one-more", "x")
        client.config_set("maxmemory", 0)
        looked(watch)
        gone = {f"key-{number}" for number in range(200) if not client.exists(f"key-{number}")}
        assert gone
        assert {evicted.key for evicted in watch.memory.evicted} - {"one-more", "edge-canary"} == gone
    with watching(server.url) as later:
        looked(later)
        assert counts(later.memory) == (0, 0, 0)
