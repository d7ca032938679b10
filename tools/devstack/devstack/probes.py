"""Health checks that also prove identity: the server that answers must be the child that was started.

A probe is `async (pid) -> None | str`: None when healthy, else why not (yet). A refused connection is an answer, not
an error; probes must not raise for anything a starting or dying server can do.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

Probe = Callable[[int], Awaitable[str | None]]
TIMEOUT_S = 2.0


async def _exchange(port: int, request: bytes) -> bytes | None:
    """Connect, send, read one line; None when nothing listens there.

    By hand, because this runs ten times a second per process while the processes need the processor to start.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                return await reader.readline() if request else b""
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return None


def kafka(port: int, cluster_id: str) -> Probe:
    """Healthy when the broker answers for its metadata and belongs to our cluster."""

    def ask() -> str | None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
            answering = str(admin.list_topics(timeout=TIMEOUT_S).cluster_id)
        except KafkaException as error:
            return str(error.args[0])
        return None if answering == cluster_id else f"port {port} is answered by another cluster, {answering}"

    async def probe(_pid: int) -> str | None:
        if await _exchange(port, b"") is None:
            return f"nothing listens on port {port}"
        return await asyncio.to_thread(ask)

    return probe


def postgres(dsn: str, data: Path) -> Probe:
    """Healthy when it takes a connection and its data folder (absolute, links resolved) is ours."""

    async def probe(_pid: int) -> str | None:
        import asyncpg

        try:
            connection = await asyncpg.connect(dsn, timeout=TIMEOUT_S)
            try:
                folder = await connection.fetchval("SHOW data_directory", timeout=TIMEOUT_S)
            finally:
                await connection.close(timeout=TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return str(error) or repr(error)
        return None if Path(folder) == data else f"another server answers, with data in {folder}"

    return probe


def redis(url: str) -> Probe:
    """Healthy when it answers (its log is loaded) and says that it is our child."""

    async def probe(pid: int) -> str | None:
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        client = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        try:
            await client.ping()
            answering = (await client.info("server"))["process_id"]
        except (RedisError, OSError) as error:
            return str(error)
        finally:
            await client.aclose()
        return None if answering == pid else f"another server answers, process {answering}"

    return probe


def ready(ops_port: int) -> Probe:
    """Healthy when GET /readyz of the ops port is 200 and the port is the child's own."""

    async def probe(pid: int) -> str | None:
        answer = await _exchange(ops_port, b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        if not answer:
            return "/readyz does not answer"
        if answer.split()[1:2] != [b"200"]:
            return f"/readyz says {answer.decode(errors='replace').strip()}"
        return None if _owns(pid, ops_port) else f"port {ops_port} is another program's"

    return probe


def _owns(pid: int, port: int) -> bool:
    """Whether the process listens on the port; where the system does not tell, its word is taken."""
    try:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in psutil.Process(pid).net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
