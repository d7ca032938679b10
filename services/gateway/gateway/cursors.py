"""Cursors of lists: where a page ended, signed for who asked what. Pure.

A cursor is good for the same caller, route and filters only; anybody else's, or a forged one, is refused as unreadable.
"""

import base64
import binascii
import hmac
from datetime import UTC, datetime
from hashlib import blake2b

import msgspec

from gateway.orders_sql import After

CURSOR_LENGTH_MAX = 200
_MAC_BYTES = 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CursorInvalid(ValueError):
    """Not made here, or made for another caller, route or filter."""


class Cursors:
    """Writes and reads cursors, signed with a key of the installation's own."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, after: After, *scope: str) -> str:
        """A cursor to what comes behind `after`, for `scope`: who asks, the route, and each filter."""
        at_us = (after.created_at - _EPOCH) // datetime.resolution
        place = msgspec.json.encode([at_us, after.purchase_id])
        return base64.urlsafe_b64encode(self._mac(place, scope) + place).decode().rstrip("=")

    def read(self, cursor: str, *scope: str) -> After:
        """The place a cursor names.

        Raises:
            CursorInvalid: it is not one that `write` made for this scope.
        """
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise CursorInvalid from None
        mac, place = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if len(cursor) > CURSOR_LENGTH_MAX or not hmac.compare_digest(mac, self._mac(place, scope)):
            raise CursorInvalid
        at_us, purchase_id = msgspec.json.decode(place, type=tuple[int, str])
        return After(_EPOCH + at_us * datetime.resolution, purchase_id)

    def _mac(self, place: bytes, scope: tuple[str, ...]) -> bytes:
        told = "".join(f"{len(part)}:{part}" for part in (place.decode("latin-1"), *scope))
        return blake2b(told.encode(), digest_size=_MAC_BYTES, key=self._key).digest()
