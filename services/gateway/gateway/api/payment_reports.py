"""The route on which payment providers report; what a report must be is in `webhook_signature.py`."""

import time
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.responses import Response

from gateway.admission.command_producer import Commands
from gateway.api import views, webhook_signature
from gateway.api.openapi import WITH_BODY, answers, described_by, problem_responses
from gateway.http import problems
from service.problem_details import Problem, ProblemError, granted

_SIGNED = {"required": True, "content": {"application/json": described_by(webhook_signature.PaymentReport)}}


class PaymentReports:
    """The handler, over the secrets that are valid and the log's commands; `add_to` puts it into an app."""

    def __init__(self, commands: Commands, webhook_secrets: Sequence[str]) -> None:
        self._commands, self._webhook_secrets = commands, webhook_secrets

    def add_to(self, app: FastAPI) -> None:
        """Add the route."""
        app.add_api_route(
            "/v1/payments/webhook",
            self.payment_reported,
            methods=["POST"],
            operation_id="reportPayment",
            tags=["payments"],
            status_code=202,
            responses=answers(202, views.Reported, "in the log", {"report_id": "evt-1", "status": "accepted"})
            | problem_responses(problems.SIGNATURE_INVALID, problems.OUTCOME_UNKNOWN, *WITH_BODY),
            openapi_extra={"security": [{"signature": []}], "requestBody": _SIGNED},
        )

    async def payment_reported(self, request: Request) -> Response:
        """A signed report of a payment provider. A report that is late, or repeated, is harmless."""
        body, given = await request.body(), request.headers.getlist(webhook_signature.SIGNATURE_HEADER)
        header = given[0] if len(given) == 1 else None
        granted(webhook_signature.check_signature(header, body, self._webhook_secrets, time.time()))
        command = webhook_signature.command(body)
        if isinstance(command, Problem):
            raise ProblemError(command)
        granted(await self._commands.append(command, command.purchase_id))
        accepted = views.Reported(command.report_id, "accepted")
        return Response(views.encoded(accepted), 202, media_type="application/json")
