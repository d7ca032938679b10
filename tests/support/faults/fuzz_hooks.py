"""What Schemathesis is told beyond the description: how payment reports are signed, and which answers are by design."""

import os
import time
from typing import Any

import requests
import schemathesis

from gateway.api.webhook_signature import SIGNATURE_HEADER
from tests.support.builders.webhook import signature

BY_DESIGN = ("The cursor is none of ours", "closes_at must be after", "An instant must lie")


class Signed(requests.auth.AuthBase):
    """Signs the very bytes that are sent."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the signature."""
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else body
        assert isinstance(raw, bytes)
        request.headers[SIGNATURE_HEADER] = signature(os.environ["FUZZ_WEBHOOK_SECRET"], int(time.time()), raw)
        return request


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, kwargs: dict[str, Any]) -> None:
    """Where a signature was made up, make it a good one."""
    if case.operation.path == "/v1/payments/webhook" and SIGNATURE_HEADER in (case.headers or {}):
        kwargs["auth"] = Signed()


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """JSON Schema calls 37.0 an integer; strict bodies do not."""
    if isinstance(body, dict):
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in body.items()}
    return body


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Exception, case: Any, response: schemathesis.Response
) -> bool:
    """A valid request may be refused for what its key was used for, for what two fields say together, by overload."""
    name = type(failure).__name__
    if name == "ServerError" and response.status_code == 503:
        return not (response.json()["type"].endswith("/overloaded") and response.headers.get("retry-after"))
    if name == "AcceptedNegativeData" and response.status_code == 413:
        return False  # refused it was, for its size, which was looked at first
    return not (name == "RejectedPositiveData" and response.status_code == 422 and _by_design(response))


def _by_design(response: schemathesis.Response) -> bool:
    problem = response.json()
    detail = str(problem["detail"])
    return str(problem["type"]).endswith("idempotency-key-reused") or detail.startswith(BY_DESIGN)
