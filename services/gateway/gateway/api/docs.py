"""`/docs`: a listener as Swagger UI, from our own host; `/problems/...`: the meaning of each problem."""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from inspect import cleandoc
from typing import Any, cast

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.openapi import NULL, SCHEMAS, ProblemDocument, replaced
from gateway.http import problems
from service.problem_details import TYPE_PREFIX, Problem
from service.problem_handlers import answer

FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}
FRESH_S = 86_400
_START = b"""window.onload = () => SwaggerUIBundle({
  url: "openapi.json", dom_id: "#ui", deepLinking: true, tryItOutEnabled: true, persistAuthorization: true,
  presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout"});
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title><link rel="icon" href="docs/favicon.png"><link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="ui"></div><script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body>
</html>
"""
# Swagger UI sets styles in its elements and draws with data: images; no script but ours runs, nothing comes from afar.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
_SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_KEPT = {"cache-control": f"public, max-age={FRESH_S}"}
_KINDS = {kind.slug: kind for kind in problems.KINDS}


def add_docs(app: FastAPI, security_schemes: dict[str, Any], shapes: Sequence[type[msgspec.Struct]]) -> None:
    """Serve the app's description and its page; the schemes are how callers may be known, the shapes of its bodies."""
    generate = app.openapi

    @cache
    def described() -> dict[str, Any]:
        whole: Any = replaced(generate(), NULL, None)
        components = whole.setdefault("components", {})
        components.setdefault("schemas", {}).update(_schemas((*shapes, ProblemDocument)))
        components["securitySchemes"] = security_schemes
        for operation in (one for path in whole["paths"].values() for one in path.values()):
            words = re.sub(r"([A-Z])", r" \1", operation["operationId"]).lower()
            operation["summary"] = words[0].upper() + words[1:]
        return cast("dict[str, Any]", whole)

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way of extending a description
    page = (_PAGE % app.title).encode()

    async def shown(_: Request) -> Response:
        headers = _SAFE | {"content-security-policy": _POLICY, "x-frame-options": "DENY"}
        return Response(page, media_type="text/html", headers=headers)

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "start.js":
            return Response(_START, media_type="text/javascript", headers=_SAFE)
        headers = _SAFE | _KEPT | {"content-type": FILES.get(name, "")}
        if name not in FILES:
            return answer(Problem(problems.NOT_FOUND, "The documentation has no such part."))
        return Response(_content(name), headers=headers)

    async def explained(request: Request) -> Response:
        kind = _KINDS.get(request.path_params["slug"])
        if kind is None:
            return answer(Problem(problems.NOT_FOUND, "There is no such problem."))
        return Response(kind.page(), media_type="text/plain", headers=_SAFE | _KEPT)

    app.add_route(TYPE_PREFIX + "{slug}", explained, include_in_schema=False)
    app.add_route("/docs", shown, include_in_schema=False)
    app.add_route("/docs/{name}", part, include_in_schema=False)


def _schemas(shapes: Sequence[type[msgspec.Struct]]) -> Any:
    _, schemas = msgspec.json.schema_components(shapes, ref_template=SCHEMAS + "{name}")
    for schema in schemas.values():
        schema["description"] = cleandoc(schema["description"])
    # Python's `$` lets a final newline through; what does not is written `\Z` there, and `$` in a JSON schema.
    return msgspec.json.decode(msgspec.json.encode(schemas).replace(rb"\\Z", b"$"))


@cache
def _content(name: str) -> bytes:
    return (files("fastapi_offline") / "static" / name).read_bytes()
