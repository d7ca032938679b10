"""The limiter over HTTP: batches, a check for reverse proxies, the policies and their change. Connects to nothing."""

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.limiter import BATCH_MAX, Limiter, RedisUnavailable, Subject, Verdict
from service.operator_key import holds_key
from service.problem_details import Kind, Problem, ProblemError
from service.problem_handlers import add_problem_handlers, answer

BODY_BYTES_MAX = 256 * 1024
LINE_CHARS_MAX = 1_024
NAME_CHARS_MAX, ADDRESS_CHARS_MAX = 256, 64
INVALID_BODY = Kind("invalid-body", 422, "Validation failed")
UNAUTHENTICATED = Kind("unauthenticated", 401, "Authentication required")
RATE_LIMITED = Kind("rate-limited", 429, "Too many requests", retryable=True)
UNAVAILABLE = Kind("unavailable", 503, "Service unavailable", retryable=True)
INTERNAL = Kind("internal-error", 500, "The service failed", retryable=True)
_KINDS = {
    400: Kind("malformed-request", 400, "Malformed request"),
    404: Kind("not-found", 404, "Not found"),
    405: Kind("method-not-allowed", 405, "Method not allowed"),
    413: Kind("too-large", 413, f"A body has at most {BODY_BYTES_MAX} bytes"),
    422: INVALID_BODY,
}
_audit = logging.getLogger("ratelimit.audit")

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Address = Annotated[str, Field(min_length=1, max_length=ADDRESS_CHARS_MAX)]


class CheckedSubject(BaseModel):
    """A caller; a policy of a missing part does not apply."""

    model_config = ConfigDict(extra="forbid")

    user: Name | None = None
    address: Address | None = None


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
    """All policies in force. `version`: when they were changed (ms); 0: they are those of the setting."""

    version: int
    policies: list[ListedPolicy]


class PolicyChange(BaseModel):
    """The line of policies to put in force, as in the setting; empty: no limits."""

    model_config = ConfigDict(extra="forbid")

    limits: Annotated[str, Field(max_length=LINE_CHARS_MAX)]


class BodyLimit:
    """Refuses a body over BODY_BYTES_MAX before more of it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        length = 0

        async def counted() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > BODY_BYTES_MAX:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return message

        await self._app(scope, counted, send)


class Api:
    """The handlers over a limiter; without a key's hash nobody may change anything."""

    def __init__(self, limiter: Limiter, admin_key_sha256: str = "") -> None:
        self._limiter, self._key_sha256 = limiter, admin_key_sha256

    def build(self) -> FastAPI:
        """The app."""
        app = FastAPI(title="Stampede rate limit", version="1", docs_url=None, redoc_url=None)
        app.add_middleware(BodyLimit)
        app.post("/v1/check", operation_id="check")(self.check)
        app.get("/v1/check", operation_id="check_one", status_code=204, response_class=Response)(self.check_one)
        app.get("/v1/policies", operation_id="list_policies")(self.policies)
        app.put("/v1/policies", operation_id="change_policies")(self.change)
        add_problem_handlers(app, _KINDS, Problem(INTERNAL, "The service failed; its log says why."))
        return app

    async def check(self, request: CheckRequest) -> CheckResponse:
        """Judge a batch; a refused subject spends nothing."""
        batch = [Subject(each.user, each.address) for each in request.subjects]
        return CheckResponse(verdicts=[_shown(verdict) for verdict in await self._limiter.check(batch)])

    async def check_one(
        self,
        x_user_id: Annotated[str, Header()] = "",
        x_real_ip: Annotated[str, Header()] = "",
        refused: Annotated[Literal["403", "429"], Query()] = "403",
    ) -> Response:
        """Judge what a proxy is about to pass on: 204, or the status in `refused`, with the headers to tell.

        nginx' auth_request takes 401 and 403 for a no and anything else for an error, hence the default; and hence no
        name is too long here, and no address unreadable.
        """
        subject = Subject(x_user_id or None, x_real_ip[:ADDRESS_CHARS_MAX] or None)
        (verdict,) = await self._limiter.check([subject])
        if verdict.allowed:
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=verdict.headers())
        response = answer(Problem(replace(RATE_LIMITED, status=int(refused)), "Come back later."))
        response.headers.update(verdict.headers())
        return response

    async def policies(self) -> ListedPolicies:
        """Show the policies in force."""
        return self._listed()

    async def change(self, request: Request, change: PolicyChange) -> ListedPolicies:
        """Put other policies in force, for all gateways and for good. For operators."""
        self._authorise(request)
        before = self._limiter.version
        try:
            version = await self._limiter.change(change.limits)
        except ValueError as error:
            raise ProblemError(Problem(INVALID_BODY, f"limits: {error}")) from None
        except RedisUnavailable:
            detail = "Redis does not answer: whether the limits were changed is not known. Send the same again."
            raise ProblemError(Problem(UNAVAILABLE, detail)) from None
        told = {"action": "change limits", "before": before, "version": version, "limits": change.limits}
        _audit.info("operator action", extra=told | {"outcome": "changed"})
        return self._listed()

    def _authorise(self, request: Request) -> None:
        if not holds_key(request.headers.get("authorization", "").encode("latin-1"), self._key_sha256):
            _audit.warning("operator action", extra={"action": "change limits", "outcome": "refused"})
            detail = "Send Authorization: Bearer with the operators' key."
            raise ProblemError(Problem(UNAUTHENTICATED, detail))

    def _listed(self) -> ListedPolicies:
        listed = [
            ListedPolicy(
                name=policy.name,
                scope=policy.scope,
                algorithm=policy.algorithm.name.lower(),
                quota=policy.quota,
                window_s=policy.window_us / 1_000_000,
                burst=policy.burst,
            )
            for policy in self._limiter.policies
        ]
        return ListedPolicies(version=self._limiter.version, policies=listed)


def _shown(verdict: Verdict) -> CheckVerdict:
    return CheckVerdict(
        allowed=verdict.allowed,
        policy=verdict.policy.name if verdict.policy else None,
        remaining=verdict.remaining,
        retry_after_s=verdict.retry_after_s,
        degraded=verdict.degraded,
        headers=verdict.headers(),
    )
