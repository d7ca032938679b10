"""The ops listener: health, metrics, extra routes, and callers that misbehave."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest

from telemetry.ops import CONNECTIONS_MAX, HEADER_BYTES_MAX, REQUEST_SECONDS_MAX, Checks, Ops, build_registry, serve_ops
from telemetry.tracing import configure


@dataclass
class Health:
    """What the process under test knows of itself."""

    live: dict[str, bool | str] = field(default_factory=lambda: {"loop": True})
    ready: dict[str, bool | str] = field(default_factory=lambda: {"kafka": True, "postgres": True})


@pytest.fixture
def health() -> Health:
    """All is well, until the test says otherwise."""
    return Health()


@pytest.fixture
async def ops(health: Health) -> AsyncIterator[Ops]:
    """A listener with two routes of the caller's."""

    async def state(query: Mapping[str, str]) -> object:
        return {"partition": int(query["partition"])}

    def broken(_query: Mapping[str, str]) -> object:
        raise RuntimeError("secret")

    listener = await serve_ops(
        "127.0.0.1",
        0,
        live=lambda: health.live,
        ready=lambda: health.ready,
        routes={"/state": state, "/broken": broken},
        registry=build_registry("s", "s-0", configure("s", "s-0", "", 1.0)),
    )
    yield listener
    await listener.close()


async def send(ops: Ops, request: bytes) -> bytes:
    """All bytes that come back for these, until the listener closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ops.port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def get(ops: Ops, target: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    answer = await send(ops, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, body = answer.split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head
    return int(head.split()[1]), body


async def test_health_tells_what_failed(ops: Ops, health: Health) -> None:
    """503 names the failing checks; verbose names all; started once means started."""
    assert await get(ops, "/livez") == (200, b'{"status":"ok"}')
    health.ready["kafka"] = "no broker answers"
    assert (await get(ops, "/startupz"))[0] == 503
    status, body = await get(ops, "/readyz")
    assert (status, json.loads(body)["checks"]) == (503, {"kafka": "no broker answers"})
    status, body = await get(ops, "/readyz?verbose")
    assert (status, json.loads(body)["checks"]) == (503, {"kafka": "no broker answers", "postgres": True})
    health.ready["kafka"] = True
    assert (await get(ops, "/readyz"))[0] == (await get(ops, "/startupz"))[0] == 200
    health.ready["kafka"] = False
    assert ((await get(ops, "/readyz"))[0], (await get(ops, "/startupz"))[0]) == (503, 200)


async def test_a_check_that_raises_has_failed() -> None:
    """It is a 503 that says so, not an outage of the listener."""

    def raising() -> Checks:
        raise RuntimeError("secret")

    ops = await serve_ops("127.0.0.1", 0, live=raising, ready=raising)
    status, body = await get(ops, "/livez")
    await ops.close()
    assert (status, b"RuntimeError" in body, b"secret" in body) == (503, True, False)


async def test_metrics_and_routes(ops: Ops) -> None:
    """Prometheus text; the caller's routes get the query; wrong ones are 400 or 404, a bug is a bare 500."""
    status, body = await get(ops, "/metrics")
    assert status == 200
    assert b'stampede_build_info{instance="s-0",service="s"} 1.0' in body
    assert b"stampede_dropped_spans 0.0" in body
    assert await get(ops, "/state?partition=3") == (200, b'{"partition":3}')
    assert (await get(ops, "/state?partition=x"))[0] == 400
    assert (await get(ops, "/state"))[0] == (await get(ops, "/nowhere"))[0] == 404
    assert await get(ops, "/broken") == (500, b"")
    assert (await send(ops, b"HEAD /livez HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /livez HTTP/1.1\r\n\r\n", b"405"),
        (b"\xff\xfe\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /a b HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * HEADER_BYTES_MAX + b"\r\n\r\n", b"431"),
    ],
)
async def test_garbage_is_refused_and_forgotten(ops: Ops, request_bytes: bytes, status: bytes) -> None:
    """A status, a closed connection, and the next caller is served."""
    answer = await send(ops, request_bytes)
    assert answer.split()[1:2] == [status]
    assert (await get(ops, "/livez"))[0] == 200


async def test_idle_callers_are_put_out(ops: Ops) -> None:
    """More silent connections than allowed: the surplus is closed at once, the rest in time; then all is as before."""
    idle = [await asyncio.open_connection("127.0.0.1", ops.port) for _ in range(CONNECTIONS_MAX + 5)]
    idle[0][1].write(b"GET /livez HT")
    async with asyncio.timeout(10 * REQUEST_SECONDS_MAX):  # without a limit they would stay for ever
        for reader, writer in idle:
            assert await reader.read() == b""
            writer.close()
    assert (await get(ops, "/livez"))[0] == 200


async def test_a_busy_port_raises(ops: Ops) -> None:
    """The caller can say so in one sentence."""
    with pytest.raises(OSError, match="address already in use"):
        await serve_ops("127.0.0.1", ops.port, live=dict, ready=dict)
