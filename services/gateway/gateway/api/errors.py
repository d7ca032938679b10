"""Every error of the two apps as a problem document."""

from fastapi import FastAPI, Request
from fastapi.responses import Response

from gateway.http import problems
from gateway.read_side.lookup import Undetermined
from gateway.read_side.postgres import Unavailable
from service.problem_details import Problem
from service.problem_handlers import add_problem_handlers, answer

_BY_STATUS = {
    400: problems.MALFORMED,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    422: problems.INVALID_BODY,
}


def add_handlers(app: FastAPI) -> None:
    """Make every error of this app a problem document."""

    async def unavailable(_: Request, error: Exception) -> Response:
        unsure = "Whether there is such a purchase is not known now; ask again."
        detail = unsure if isinstance(error, Undetermined) else "The database cannot be queried now."
        return answer(Problem(problems.UNAVAILABLE, detail, retry_after_s=1))

    failed = Problem(problems.INTERNAL, "The gateway failed; the log of the gateway says why.")
    key = problems.KEY_INVALID, "Send one Idempotency-Key header"
    add_problem_handlers(app, _BY_STATUS, failed, {("header", "idempotency-key"): key})
    app.add_exception_handler(Unavailable, unavailable)
