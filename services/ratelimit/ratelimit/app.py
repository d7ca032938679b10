"""The composition root of the ratelimit service: the limiter that gateways embed, over HTTP. It holds no rule."""

import asyncio
import socket

import uvicorn

from ratelimit.api import Api
from ratelimit.limiter import Limiter, connect
from ratelimit.policy import parse_policies
from ratelimit.settings import Settings
from service.tasks import long_lived_tasks
from telemetry.ops import build_registry, serve_ops

DRAIN_SECONDS_MAX = 10


async def serve(settings: Settings, stopping: asyncio.Event) -> None:
    """Run the service until `stopping` is set, then answer what is open and return.

    Redis may be away, at the start too: then the service answers from its own buckets, and says so.

    Raises:
        OSError: the port is taken. ValueError: the limits or the address of Redis cannot be read.
    """
    registry = build_registry("ratelimit", settings.instance)
    redis = connect(settings.redis)
    limiter = Limiter(redis, parse_policies(settings.limits), gateways=settings.gateways, registry=registry)
    app = Api(limiter, settings.admin_key_sha256).build()
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS_MAX)
    )

    async def stop() -> None:
        """For a signal before or after uvicorn listens to them itself."""
        await stopping.wait()
        server.should_exit = True

    listener = socket.create_server((settings.http_host, settings.http_port))
    ops = await serve_ops(
        settings.ops_host,
        settings.ops_port,
        live=lambda: {"event loop": True},
        ready=lambda: {"http": (server.started and not server.should_exit) or "not serving"},
        registry=registry,
    )
    await limiter.open()  # also the policies that were changed since the setting was written
    stopper = asyncio.create_task(stop())
    try:
        async with long_lived_tasks() as start:
            start("keep limits fresh", limiter.run())
            with listener:
                await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        await ops.close()
        await redis.aclose()
