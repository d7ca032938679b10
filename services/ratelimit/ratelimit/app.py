"""The ratelimit service: the limiter the gateway embeds, over HTTP, for whoever cannot embed it.

The composition root. It holds no rule of its own.
"""

import signal
import socket
from http import HTTPStatus
from types import FrameType
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ratelimit.limiter import BATCH_MAX, Limiter, Subject, connect
from ratelimit.policy import parse_policies
from ratelimit.settings import Settings
from telemetry.ops import Checks, build_registry, serve_ops

DRAIN_SECONDS_MAX = 10


class CheckedSubject(BaseModel):
    """Who asks; a policy of a missing part does not apply."""

    model_config = ConfigDict(extra="forbid")

    user: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    address: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class CheckRequest(BaseModel):
    """A batch, judged in order."""

    model_config = ConfigDict(extra="forbid")

    subjects: Annotated[list[CheckedSubject], Field(min_length=1, max_length=BATCH_MAX)]


class CheckVerdict(BaseModel):
    """One answer; `headers` are what to tell the caller."""

    allowed: bool
    policy: str | None
    remaining: int
    retry_after_s: int
    degraded: bool
    headers: dict[str, str]


class CheckResponse(BaseModel):
    """One verdict for each subject, in order."""

    verdicts: list[CheckVerdict]


class ListedPolicy(BaseModel):
    """A policy in force."""

    name: str
    scope: str
    algorithm: str
    quota: int
    window_s: float
    burst: int


class ListedPolicies(BaseModel):
    """All policies in force."""

    policies: list[ListedPolicy]


def build_app(limiter: Limiter) -> FastAPI:
    """The HTTP side over a limiter; connects to nothing."""
    app = FastAPI(title="Stampede rate limit", version="1", docs_url=None, redoc_url=None)

    @app.post("/v1/check", operation_id="check")
    async def check(request: CheckRequest) -> CheckResponse:
        """Judge a batch; a refused subject spends nothing."""
        batch = [Subject(each.user, each.address) for each in request.subjects]
        verdicts = [
            CheckVerdict(
                allowed=verdict.allowed,
                policy=verdict.policy.name if verdict.policy else None,
                remaining=verdict.remaining,
                retry_after_s=verdict.retry_after_s,
                degraded=verdict.degraded,
                headers=verdict.headers(),
            )
            for verdict in await limiter.check(batch)
        ]
        return CheckResponse(verdicts=verdicts)

    @app.get("/v1/policies", operation_id="list_policies")
    async def policies() -> ListedPolicies:
        """Show the policies in force."""
        listed = [
            ListedPolicy(
                name=policy.name,
                scope=policy.scope,
                algorithm=policy.algorithm.name.lower(),
                quota=policy.quota,
                window_s=policy.window_us / 1_000_000,
                burst=policy.burst,
            )
            for policy in limiter.policies
        ]
        return ListedPolicies(policies=listed)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        problem = {
            "type": "/problems/invalid-request",
            "title": "The request cannot be read",
            "status": HTTPStatus.UNPROCESSABLE_ENTITY,
            "detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            "retryable": False,
        }
        return JSONResponse(problem, HTTPStatus.UNPROCESSABLE_ENTITY, media_type="application/problem+json")

    return app


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Run the service on a bound socket until SIGTERM, then answer what is open and return.

    Redis may be away, at the start too: then the service answers from its own buckets, and says so.
    """
    registry = build_registry("ratelimit", settings.instance)
    redis = connect(settings.redis)
    limiter = Limiter(redis, parse_policies(settings.limits), gateways=settings.gateways, registry=registry)
    config = uvicorn.Config(
        build_app(limiter), log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS_MAX
    )
    server = uvicorn.Server(config)

    def stop(_number: int, _frame: FrameType | None) -> None:
        # uvicorn raises a signal again once it has drained; this handler lets what follows run, and exit with 0.
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def live() -> Checks:
        return {"event loop": True}

    def ready() -> Checks:
        return {"http": (server.started and not server.should_exit) or "not serving"}

    ops = await serve_ops(settings.ops_host, settings.ops_port, live=live, ready=ready, registry=registry)
    try:
        await server.serve(sockets=[listener])
    finally:
        await ops.close()
        await redis.aclose()
