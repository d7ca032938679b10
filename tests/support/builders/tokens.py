"""What tests of tokens are built from: issuers with keys of every kind, tokens good and bad, a JWKS server."""

import base64
import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://issuer.example"
AUDIENCE = "stampede"
SECRET = "a secret of the test that is long enough"


def private_key(algorithm: str) -> Any:
    """A new one; for HS256 the secret."""
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(65537, 2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
    return SECRET


@dataclass
class Issuer:
    """Signs tokens with one key."""

    algorithm: str = "ES256"
    kid: str = "k1"
    key: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.key = self.key or private_key(self.algorithm)

    def token(self, sub: str = "ann", *, headers: dict[str, Any] | None = None, **changed: Any) -> str:
        """A token for `sub`, good for five minutes; None leaves a claim out."""
        claims = {"sub": sub, "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300} | changed
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.key, self.algorithm, {"kid": self.kid} | (headers or {}))

    @property
    def pem(self) -> bytes:
        """The public key."""
        public: bytes = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return public

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as an issuer publishes it."""
        kind = jwt.get_algorithm_by_name(self.algorithm)
        return dict(kind.to_jwk(self.key.public_key(), as_dict=True)) | {"kid": self.kid, "use": "sig"}


def forged(header: dict[str, Any], claims: dict[str, Any] | None = None, signature: bytes = b"") -> str:
    """Any three parts as a token."""
    claims = claims or {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300}
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@dataclass
class JwksServer:
    """A JWKS endpoint that counts how often it is asked; `body` may be replaced, `status` be an error or a redirect."""

    url: str = ""
    body: bytes = b"{}"
    status: int = 200
    location: str = ""
    asked: list[str] = field(default_factory=list)

    def publish(self, *issuers: Issuer) -> None:
        """Hold these keys from now on."""
        self.body = json.dumps({"keys": [issuer.jwk for issuer in issuers]}).encode()


@contextlib.contextmanager
def jwks_server(*issuers: Issuer) -> Iterator[JwksServer]:
    """Serve their keys on loopback."""
    served = JwksServer()
    served.publish(*issuers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The document."""
            served.asked.append(self.path)
            self.send_response(served.status)
            if served.location:
                self.send_header("Location", served.location)
            self.end_headers()
            self.wfile.write(served.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
