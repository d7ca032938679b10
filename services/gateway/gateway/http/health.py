"""/livez, /startupz and /readyz on the listener of buyers."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from gateway.http import problems
from service.problem_details import Problem
from service.problem_handlers import answer
from telemetry.ops import Checks


def health(checks: Checks, *, verbose: bool) -> Response:
    """The answer of /livez and /readyz."""
    failed = {name: state for name, state in checks.items() if state is not True}
    if failed:
        return answer(Problem(problems.UNAVAILABLE, "Not ready.", extra={"checks": failed}))
    shown: Mapping[str, object] = {"status": "ok"} | ({"checks": dict(checks)} if verbose else {})
    return Response(msgspec.json.encode(shown), media_type="application/json")


class Probes(NamedTuple):
    """The checks of this process: it works, it has begun, send it buyers."""

    live: Callable[[], Checks]
    started: Callable[[], Checks]
    ready: Callable[[], Checks]

    def add_to(self, app: FastAPI) -> None:
        """Add /livez, /startupz and /readyz."""

        def probe(checks: Callable[[], Checks]) -> Callable[[Request], Awaitable[Response]]:
            async def probe(request: Request) -> Response:
                return health(checks(), verbose="verbose" in request.query_params)

            return probe

        for path, checks in (("/livez", self.live), ("/startupz", self.started), ("/readyz", self.ready)):
            app.add_route(path, probe(checks), include_in_schema=False)
