"""SIGTERM while a crowd in another process keeps opening connections: each is answered or refused, none is broken."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.gateway import GatewayProcess
from tests.support.sale import Sale

CROWD = 64
ROUNDS = 5  # without the filter four rounds in five break connections
EXIT_S_MAX = 25.0
DOOR = """
import asyncio, signal, uvloop
from gateway.listener import Listener

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

async def main():
    listener, stopping = Listener(app, "127.0.0.1", 0), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    serving = asyncio.create_task(listener.serve())
    print(listener.port, flush=True)
    await stopping.wait()
    listener.drain()
    listener.close()
    await serving

uvloop.run(main())
"""


def crowd(port: int) -> "subprocess.Popen[str]":
    """It has begun to knock."""
    command = [sys.executable, "-m", "tests.support.knocking", str(port), str(CROWD)]
    knocking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert knocking.stdout is not None
    assert knocking.stdout.readline() == "knocking\n"
    return knocking


def ends(knocking: "subprocess.Popen[str]") -> dict[str, int]:
    """How often which end was met, once everybody was refused."""
    told, _ = knocking.communicate(timeout=30)
    found: dict[str, int] = json.loads(told)
    return found


def test_a_listener_that_closes_breaks_no_connection() -> None:
    """Again and again, with the kernel letting people in up to the last instant."""
    for _ in range(ROUNDS):
        with subprocess.Popen([sys.executable, "-c", DOOR], stdout=subprocess.PIPE, text=True) as door:
            assert door.stdout is not None
            knocking = crowd(int(door.stdout.readline()))
            door.terminate()
            met = ends(knocking)
        assert door.returncode == 0
        assert met.pop("answered") > CROWD
        assert met == {"refused": CROWD}


def test_a_gateway_that_ends_breaks_no_connection(sale: Sale, tmp_path: Path) -> None:
    """From SIGTERM to its end: unready at once, while it goes on answering; in time, and with 0."""
    gateway = GatewayProcess(sale.stack, tmp_path)
    try:
        gateway.await_ready()
        knocking = crowd(gateway.http)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(EXIT_S_MAX) == 0, gateway.said()
        assert 1.0 < time.monotonic() - began < EXIT_S_MAX, "who sends buyers here has time to look at readiness"
        met = ends(knocking)
    finally:
        gateway.process.kill()
    assert met.pop("answered") > CROWD
    assert met == {"refused": CROWD}
