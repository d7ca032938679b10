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


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), TIMEOUT_S)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


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
        return await asyncio.to_thread(ask) if await _listens(port) else f"nothing listens on port {port}"

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
        import httpx

        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
                answer = await client.get(f"http://127.0.0.1:{ops_port}/readyz")
        except httpx.HTTPError as error:
            return f"/readyz does not answer ({type(error).__name__})"
        if answer.status_code != 200:
            return f"/readyz says {answer.status_code}"
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
