"""Verified tokens: the caller that a JWT names, if its signature and its claims hold.

Algorithm, issuer and audience come from the settings, never from the token; one algorithm per installation, so that
no key can be taken for one of another kind. Must not write a token or a name anywhere.
"""

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import jwt
from jwt.utils import base64url_encode

from gateway.auth.ids import Subject
from gateway.auth.jwks import Jwks, Key, Keys, OneKey, key_set
from gateway.http import problems
from gateway.http.requests import Headers
from service.problem_details import Problem

TOKEN_BYTES_MAX = 8_192
NAME_LENGTH_MAX = 255
VERIFIED_MAX = 10_000
LEEWAY_S_MAX = 60
SECRET_BYTES_MIN = 32
ROLES_MAX = 100

Algorithm = Literal["RS256", "ES256", "EdDSA", "HS256"]
_REQUIRED = ("exp", "iss", "aud", "sub")
_WHY: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidIssuerError: "The token is of another issuer.",
    jwt.InvalidAudienceError: "The token is not meant for this service.",
    jwt.MissingRequiredClaimError: f"The token must have the claims {', '.join(_REQUIRED)}.",
}


class TokenRules(NamedTuple):
    """The rules for tokens."""

    algorithm: Algorithm
    issuer: str
    audience: str
    leeway_s: int = 30
    roles_claim: str = "roles"


class TokenAuthenticator:
    """Believes tokens. Those verified are remembered until they expire, at most VERIFIED_MAX."""

    def __init__(self, rules: TokenRules, keys: Keys) -> None:
        self._rules, self._keys = rules, keys
        self._verified: dict[bytes, tuple[float, Subject]] = {}  # by token, oldest first; when it expires
        self._version = keys.version

    @property
    def healthy(self) -> bool | str:
        """True, or why nobody can be vouched for."""
        return self._keys.healthy

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        await self._keys.run()

    async def subject(self, headers: Headers) -> Subject | Problem:
        """Issuer, subject and roles of the bearer token."""
        given = headers.get(b"authorization") or b""
        known = self._verified.get(given)
        if known is not None and self._version == self._keys.version and known[0] > time.time():
            return known[1]
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            return _nobody("Send one Authorization header: Bearer and a token.")
        if len(token) > TOKEN_BYTES_MAX:
            return _nobody(f"A token has at most {TOKEN_BYTES_MAX} bytes.")
        return await self._verify(given, token)

    async def _verify(self, given: bytes, token: bytes) -> Subject | Problem:
        try:
            key = await self._keys.find(jwt.get_unverified_header(token).get("kid"))  # looked up, never followed
            if key is None and self._keys.healthy is not True:
                return Problem(problems.UNAVAILABLE, "No token can be verified now.", retry_after_s=5)
            if key is None:
                return _nobody("The token is signed with a key that is not known here.")
            claims = jwt.decode(
                token,
                key,
                algorithms=[self._rules.algorithm],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=self._rules.leeway_s,
                options={"require": list(_REQUIRED), "enforce_minimum_key_length": True},
            )
            subject, expires = self._read(claims)
        except Exception as error:  # a token is a stranger's text: nothing that can be wrong with it is our failure
            return _nobody(_WHY.get(type(error), "The token cannot be verified."))
        self._remember(given, expires, subject)
        return subject

    def _read(self, claims: dict[str, Any]) -> tuple[Subject, float]:
        name, roles = claims["sub"], claims.get(self._rules.roles_claim, ())
        if not 1 <= len(name) <= NAME_LENGTH_MAX:
            raise ValueError(f"a subject has 1 to {NAME_LENGTH_MAX} characters")
        name.encode()  # JSON can hold half of a surrogate pair, UTF-8 cannot
        listed = roles.split() if isinstance(roles, str) else roles
        subject = Subject(self._rules.issuer, name, frozenset(str(role) for role in listed[:ROLES_MAX]))
        return subject, float(claims["exp"]) + self._rules.leeway_s

    def _remember(self, given: bytes, expires: float, subject: Subject) -> None:
        if self._version != self._keys.version:
            self._verified.clear()
            self._version = self._keys.version
        while len(self._verified) >= VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[given] = expires, subject


def _nobody(detail: str) -> Problem:
    return Problem(problems.UNAUTHENTICATED, detail)


def keys_of(algorithm: Algorithm, *, key_file: Path | None, jwks_url: str, production: bool) -> Keys:
    """The keys that the settings name: a file (PEM or JWKS; for HS256 the secret itself), or the URL of a JWKS.

    Raises:
        ValueError: it is no key for `algorithm`, or must not be fetched so. OSError: the file cannot be read.
    """
    if (key_file is None) == (not jwks_url):
        raise ValueError("give one of STAMPEDE_JWT_KEY_FILE and STAMPEDE_JWT_JWKS_URL")
    if key_file is None:
        url = urlsplit(jwks_url)
        local = not production and url.scheme == "http" and url.hostname in {"127.0.0.1", "::1", "localhost"}
        if algorithm == "HS256" or not (local or url.scheme == "https"):
            raise ValueError("STAMPEDE_JWT_JWKS_URL must be an https URL, and HS256 needs STAMPEDE_JWT_KEY_FILE")
        return Jwks(jwks_url, algorithm)
    return OneKey(_key_in(key_file.read_bytes().strip(), algorithm))


def _key_in(content: bytes, algorithm: Algorithm) -> Key:
    if algorithm == "HS256":
        if len(content) < SECRET_BYTES_MIN or b"-----BEGIN" in content:
            raise ValueError(f"STAMPEDE_JWT_KEY_FILE must hold a secret of at least {SECRET_BYTES_MIN} bytes")
        return jwt.PyJWK({"kty": "oct", "k": base64url_encode(content).decode()}, algorithm)
    if b"PRIVATE" in content:
        raise ValueError(
            "STAMPEDE_JWT_KEY_FILE holds a private key, which must stay with the issuer: give the public one"
        )
    try:
        if content.startswith(b"{"):
            return key_set(content, algorithm)[None]
        kind = jwt.get_algorithm_by_name(algorithm)
        return jwt.PyJWK(kind.to_jwk(kind.prepare_key(content), as_dict=True), algorithm)
    except Exception as error:
        raise ValueError(f"STAMPEDE_JWT_KEY_FILE holds no public key for {algorithm}: {error}") from None
