"""SIGTERM while a crowd in another process keeps opening connections: what is open or in flight is never broken.

A connection that is opened in the last instant may be reset, once: whoever tries again after that is refused.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.builders.gateway import GatewayProcess
from tests.support.faults.raw import talk
from tests.support.processes.sale import Sale

CROWD = 64
IN_FLIGHT = 20
ROUNDS = 3
EXIT_S_MAX = 25.0
DOOR = """
import asyncio, signal, uvloop
from gateway.http.server import Listener

async def main():
    stopping, released = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        if scope["path"] == "/held":
            await released.wait()
        await send({"type": "http.response.body", "body": b"k"})

    listener = Listener(app, "127.0.0.1", 0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, released.set)
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
    command = [sys.executable, "-m", "tests.support.faults.knocking", str(port), str(CROWD)]
    knocking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert knocking.stdout is not None
    assert knocking.stdout.readline() == "knocking\n"
    return knocking


def ends(knocking: "subprocess.Popen[str]") -> dict[str, int]:
    """How often which end was met, once everybody was refused."""
    told, _ = knocking.communicate(timeout=30)
    found: dict[str, int] = json.loads(told)
    return found


def assert_only_late_comers_were_reset(met: dict[str, int]) -> None:
    """Everybody was refused in the end, and reset at most once: at the moment the port closed."""
    assert met.pop("answered") > CROWD
    assert met.pop("refused") == CROWD, met
    assert met.pop("reset", 0) <= CROWD
    assert not met


def test_a_listener_that_closes_breaks_nothing_that_is_open() -> None:
    """Requests in flight get the rest of their answers after the port is closed, idle connections a clean end."""
    for _ in range(ROUNDS):
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", DOOR], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(server.kill)
            assert server.stdout is not None
            port = int(server.stdout.readline())
            held, idle = ([stack.enter_context(talk(port)) for _ in range(IN_FLIGHT)] for _ in range(2))
            for one in held:
                one.send(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
                assert one.socket.recv(1, socket.MSG_PEEK), "its answer has begun"
            for one in idle:
                one.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert one.answer() is not None
            knocking = crowd(port)
            server.terminate()
            assert_only_late_comers_were_reset(ends(knocking))
            time.sleep(0.5)  # not a wait for anything: by so much the answers outlast the port
            server.send_signal(signal.SIGUSR1)
            assert [[answer.body for answer in one.answers()] for one in held] == [[b"ok"]] * IN_FLIGHT
            assert all(one.ended() for one in idle)
            assert server.wait(EXIT_S_MAX) == 0


def test_a_gateway_that_ends_breaks_nothing_that_is_open(sale: Sale, tmp_path: Path) -> None:
    """From SIGTERM to its end: unready at once, while it goes on answering; in time, and with 0."""
    gateway = GatewayProcess(sale.stack, tmp_path)
    try:
        gateway.await_ready()
        knocking = crowd(gateway.http)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(EXIT_S_MAX) == 0, gateway.said()
        assert 1.0 < time.monotonic() - began < EXIT_S_MAX, "who sends buyers here has time to look at readiness"
        assert_only_late_comers_were_reset(ends(knocking))
    finally:
        gateway.process.kill()
