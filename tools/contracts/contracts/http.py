"""The HTTP interface as files: OpenAPI of each listener, and a page for each kind of problem.

The gateway serves the same descriptions and pages; here they are only written down.
"""

import msgspec

from gateway.api.app_factory import described
from gateway.http.problems import KINDS


def rendered() -> dict[str, bytes]:
    """Every file, by its path in the repository: openapi.json (buyers), openapi-admin.json (operators), the pages."""
    descriptions = {
        f"services/gateway/{name}": msgspec.json.format(msgspec.json.encode(app.openapi()), indent=2) + b"\n"
        for name, app in described().items()
    }
    return descriptions | {f"docs/problems/{kind.slug}.md": kind.page().encode() for kind in KINDS}
