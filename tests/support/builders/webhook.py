"""What a payment provider does: it signs its reports, as the webhook's description says."""

import hashlib
import hmac


def signature(secret: str, at_s: int, body: bytes) -> str:
    """The header value for a body signed at `at_s`."""
    mac = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"
