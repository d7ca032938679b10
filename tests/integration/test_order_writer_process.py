"""The order-writer as a program: migration, one sentence for what is wrong, health, a graceful end."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.support.builders.orders import Installation, listed, until

GRACE_S = 30.0  # as long as Kubernetes waits before it kills


async def run(*arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a program that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "order_writer", *arguments, env=os.environ | env, stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_migrations_may_run_twice_and_at_once(place: Installation) -> None:
    """Two at the same moment on an empty database, then a third: all succeed, the schema is there once."""
    name = f"empty_{secrets.token_hex(3)}"
    await place.rows(f"CREATE DATABASE {name}")
    dsn = f"{place.postgres.rpartition('/')[0]}/{name}"
    code, said = await run(STAMPEDE_KAFKA=place.kafka, STAMPEDE_POSTGRES=dsn)
    assert (code, "order_writer migrate" in said, said.count("\n")) == (1, True, 1)
    both = await asyncio.gather(*(run("migrate", STAMPEDE_POSTGRES=dsn) for _ in range(2)))
    assert [*both, await run("migrate", STAMPEDE_POSTGRES=dsn)] == [(0, "")] * 3
    empty = Installation(place.kafka, dsn, place.log)
    assert await empty.value("SELECT count(*) FROM alembic_version") == 1
    await place.rows(f"DROP DATABASE {name}")


@pytest.mark.parametrize(
    ("env", "code", "word"),
    [
        ({"STAMPEDE_POSTGRES": "postgresql://nobody@127.0.0.1:1/none"}, 1, "Postgres"),
        ({"STAMPEDE_ENV": "prod", "STAMPEDE_PAYMENT": "simulated", "STAMPEDE_SELL_UNPAID": "true"}, 1, "play money"),
        ({"STAMPEDE_PAYMENT": "acme"}, 1, "found are 'none', 'simulated', 'webhook'"),
        ({"STAMPEDE_ENV": "prod", "STAMPEDE_PAYMENT": "none"}, 2, "STAMPEDE_SELL_UNPAID=true"),
        ({"STAMPEDE_SESSION_TIMEOUT_S": "1"}, 2, "STAMPEDE_SESSION_TIMEOUT_S"),
        ({"STAMPEDE_SPAN_FILE": "/proc/none/spans"}, 1, "STAMPEDE_SPAN_FILE"),
    ],
)
async def test_what_is_wrong_is_said_in_one_sentence(
    place: Installation, env: dict[str, str], code: int, word: str
) -> None:
    """No traceback, no start."""
    ended, said = await run(**{"STAMPEDE_KAFKA": place.kafka, "STAMPEDE_POSTGRES": place.postgres} | env)
    assert (ended, word in said, said.count("\n")) == (code, True, 1), said


async def test_health_is_told_and_sigterm_ends_it(place: Installation) -> None:
    """Ready once caught up, metrics by name, and gone of itself after SIGTERM with exit code 0."""
    place.log.append(4, [listed()])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {"STAMPEDE_KAFKA": place.kafka, "STAMPEDE_POSTGRES": place.postgres, "STAMPEDE_OPS_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "order_writer", env=os.environ | env, stdout=subprocess.DEVNULL
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

        async def ready() -> bool:
            try:
                return (await http.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(ready, "ready")
        checks = (await http.get("/readyz?verbose")).json()["checks"]
        assert checks == {"postgres": True, "kafka": True, "caught up": True, "outbox": True}
        assert set((await http.get("/livez?verbose")).json()["checks"]) >= {
            "decision consumer",
            "payer",
            "relay",
            "hold expiry",
        }
        assert "stampede_order_batch_seconds_count 1.0" in (await http.get("/metrics")).text
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(GRACE_S):
        assert await process.wait() == 0
