"""Authorisation of operators, and the line each action leaves behind.

An operator has the key whose hash the settings hold, or a verified token with the role `admin`. Audit lines name the
operator by a pseudonym; the token itself is nowhere.
"""

import logging

from fastapi import Request

from gateway.auth.authenticator import ADMIN_ROLE, Authenticator
from gateway.auth.ids import IdentityKey, Subject
from gateway.http import problems, requests
from service.operator_key import holds_key
from service.problem_details import Problem, ProblemError, granted

KEY_ACTOR = "key"
_audit = logging.getLogger("gateway.audit")


class Access:
    """The check, and the audit."""

    def __init__(self, key_sha256: str, authenticator: Authenticator, identity: IdentityKey) -> None:
        self._key_sha256, self._authenticator, self._identity = key_sha256, authenticator, identity

    async def authorise(self, request: Request) -> None:
        """Let an operator pass. Raises ProblemError: 401 for nobody known, 403 for somebody else."""
        headers = requests.pick(request.headers.raw)
        if holds_key(headers.get(b"authorization") or b"", self._key_sha256):
            request.state.actor = KEY_ACTOR
            return
        subject = await self._authenticator.subject(headers)
        if isinstance(subject, Subject) and ADMIN_ROLE in subject.roles:
            request.state.actor = self._identity.buyer_id(subject)
            return
        self.note(request, request.method, path=request.url.path, outcome="refused")
        if isinstance(subject, Problem):
            detail = "Send Authorization: Bearer with the operators' key, or with a token that has the role admin."
            raise ProblemError(Problem(problems.UNAUTHENTICATED, detail))
        raise ProblemError(Problem(problems.FORBIDDEN, f"You have no role {ADMIN_ROLE}."))

    @staticmethod
    def note(request: Request, action: str, **what: object) -> None:
        """Leave the audit line of one action."""
        line = {"action": action, "actor": getattr(request.state, "actor", "nobody"), **what}
        _audit.log(logging.WARNING if what.get("outcome") == "refused" else logging.INFO, "operator action", extra=line)


def key_of(request: Request) -> str | None:
    """The request's Idempotency-Key, if it has one. Raises ProblemError: it is unusable."""
    headers = requests.pick(request.headers.raw)
    if b"idempotency-key" not in headers:
        return None
    return granted(requests.idempotency_key(headers))
