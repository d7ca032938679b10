"""The operators' key, of which only the hash is kept."""

import hashlib
import hmac


def holds_key(authorization: bytes, key_sha256: str) -> bool:
    """Whether an `Authorization` header is `Bearer` and the key with this hash (64 hex digits; "": nobody holds it)."""
    scheme, _, token = authorization.partition(b" ")
    digest = hashlib.sha256(token.strip()).hexdigest()
    return scheme.lower() == b"bearer" and hmac.compare_digest(digest, key_sha256.lower())
