"""Talking to the running supervisor: one JSON line there, one JSON line back.

Over a Unix socket in the stack's folder; where the folder's path is too long for one, over a loopback port with a
token. Must not decide anything: the commands' meaning is in `stack`.
"""

import asyncio
import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from devstack.failure import StackError
from devstack.layout import Layout, read_json, write_atomically

SOCKET_PATH_BYTES_MAX = 100  # the least of the systems allows 104 with the closing zero
REQUEST_BYTES_MAX = 64 * 1024
CONNECT_S = 5.0

Handle = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


async def serve(layout: Layout, handle: Handle) -> asyncio.Server:
    """Answer requests until the server is closed; `handle(command, arguments)` may raise StackError."""
    path = layout.root / "control.sock"
    token = secrets.token_urlsafe(16)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            if secrets.compare_digest(request.pop("token", ""), token):
                reply = await handle(request.pop("command"), request)
            else:
                reply = {"error": "Wrong token: this is another stack's supervisor."}
        except StackError as error:
            reply = {"error": str(error)}
        except (ValueError, KeyError) as error:
            reply = {"error": f"The request was not understood: {error!r}."}
        try:
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # who asked went away; the command was carried out all the same
        finally:
            writer.close()

    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        server = await asyncio.start_unix_server(answer, path, limit=REQUEST_BYTES_MAX)
        path.chmod(0o600)
        address: dict[str, Any] = {"socket": str(path)}
    else:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=REQUEST_BYTES_MAX)
        address = {"port": server.sockets[0].getsockname()[1]}
    write_atomically(layout.control, json.dumps({**address, "token": token, "pid": os.getpid()}))
    return server


def call(layout: Layout, command: str, wait_s: float = 10.0, **arguments: object) -> dict[str, Any]:
    """Ask the supervisor of this folder; raises StackError if none answers or if it refuses."""
    address = read_json(layout.control)
    nobody = f"No stack runs from {layout.root}: `devstack up` starts one."
    if address is None:
        raise StackError(nobody)
    try:
        with _connect(address) as connection:
            connection.settimeout(wait_s)
            request = {"command": command, "token": address["token"], **arguments}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except TimeoutError as error:
        raise StackError(
            f"The supervisor did not answer `{command}` within {wait_s:.0f} s: `devstack logs`."
        ) from error
    except OSError as error:
        raise StackError(nobody) from error
    if not line:
        raise StackError(f"The supervisor ended while it was asked to `{command}`: `devstack logs devstack`.")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise StackError(reply["error"])
    return reply


def _connect(address: dict[str, Any]) -> socket.socket:
    if "socket" in address:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(address["socket"])
        except OSError:
            connection.close()
            raise
        return connection
    return socket.create_connection(("127.0.0.1", address["port"]), timeout=CONNECT_S)
