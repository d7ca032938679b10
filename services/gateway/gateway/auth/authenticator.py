"""Authentication: turns request headers into a Subject, or says why not. One mode per installation, none by default.

`header` believes X-User-Id and is for demonstrations only. `jwt` believes verified tokens.
"""

import asyncio
import ipaddress
import logging
import re
from collections.abc import Callable

from gateway.auth.ids import Subject
from gateway.auth.tokens import TokenAuthenticator
from gateway.http import problems
from gateway.http.requests import Headers
from service.problem_details import Problem

ADMIN_ROLE = "admin"  # in a Subject's roles: may use the operators' listener
_USER = re.compile(rb"[\x21-\x7e]{1,128}")
_log = logging.getLogger(__name__)


class AuthenticationRefused(Exception):
    """The chosen mode must not or cannot be used here; the message says what to do."""


class HeaderAuthenticator:
    """Believes whatever X-User-Id says."""

    healthy: bool | str = True

    async def run(self) -> None:
        """Wait until cancelled: there is nothing to keep fresh."""
        await asyncio.Event().wait()

    async def subject(self, headers: Headers) -> Subject | Problem:
        """The name in X-User-Id: 1 to 128 visible ASCII characters, sent once."""
        value = headers.get(b"x-user-id", b"")
        if value is None or not _USER.fullmatch(value):
            return Problem(problems.UNAUTHENTICATED, "Send one X-User-Id header: 1 to 128 visible ASCII characters.")
        return Subject("header", value.decode("ascii"))


# One way of knowing who asks: `subject` says who sent some headers or refuses, `run` keeps what it believes by fresh
# until cancelled, `healthy` is True or why nobody can be vouched for.
Authenticator = HeaderAuthenticator | TokenAuthenticator


def authenticator(
    mode: str, *, production: bool, host: str, tokens: Callable[[], TokenAuthenticator] | None = None
) -> Authenticator:
    """The authenticator for `mode` (header | jwt) on a listener at `host`; `tokens` makes the one for jwt.

    Raises:
        AuthenticationRefused: the mode is not for this place, or its settings are wrong.
    """
    if mode == "jwt" and tokens is not None:
        try:
            return tokens()
        except (ValueError, OSError) as error:
            raise AuthenticationRefused(f"STAMPEDE_AUTH=jwt cannot be used: {error}") from None
    if mode != "header":
        raise AuthenticationRefused(f"STAMPEDE_AUTH={mode} is no way of knowing who asks; the modes are header and jwt")
    if production:
        raise AuthenticationRefused("STAMPEDE_AUTH=header believes any X-User-Id; it is refused with STAMPEDE_ENV=prod")
    if not _is_loopback(host):
        raise AuthenticationRefused(
            f"STAMPEDE_AUTH=header believes any X-User-Id; it is refused off loopback (STAMPEDE_HTTP_HOST={host})"
        )
    _log.warning("STAMPEDE_AUTH=header: ANYBODY CAN BUY IN ANYBODY'S NAME. For demonstrations on this machine only")
    return HeaderAuthenticator()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
