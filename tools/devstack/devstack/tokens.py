"""Tokens for trying out a stack that runs with STAMPEDE_AUTH=jwt. Its gateways verify them with a secret of its own.

Real issuers sign with a key that gateways do not have; this is for one machine.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterable

from devstack.layout import Layout

KEY = "jwt-key"
ISSUER = "stampede-local"
AUDIENCE = "stampede"
HOURS = 12


def settings(layout: Layout) -> dict[str, str]:
    """What gateways verify them by; without effect in other modes."""
    layout.secret(KEY)
    return {
        "STAMPEDE_JWT_ALGORITHM": "HS256",
        "STAMPEDE_JWT_ISSUER": ISSUER,
        "STAMPEDE_JWT_AUDIENCE": AUDIENCE,
        "STAMPEDE_JWT_KEY_FILE": str(layout.root / "secrets" / KEY),
    }


def token(layout: Layout, user: str, roles: Iterable[str]) -> str:
    """A token for `user`, good for HOURS."""
    claims = {"sub": user, "roles": list(roles), "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + HOURS * 3600}
    signed = ".".join(_part(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    mark = hmac.digest(layout.secret(KEY).encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{_part(mark)}"


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
