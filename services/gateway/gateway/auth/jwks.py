"""The keys that tokens are verified with: one from a file, or the set behind a URL, kept fresh and fetched rarely.

A key that is known is found in memory, always. An unknown one may cause a fetch, but never more than one a minute,
whatever clients send. PyJWT's own client is not used: it blocks, forgets its keys while the issuer is unavailable, and
bounds neither a document nor how often a failed fetch is repeated. Must not follow anything a token says.
"""

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt

FETCH_S_MIN = 60.0  # between two fetches, failed ones included
FETCH_S_MAX = 3.0
REFRESH_S = 300.0  # a key that its issuer withdrew is honoured for so long at most
JWKS_BYTES_MAX = 65_536
KEYS_MAX = 100
_log = logging.getLogger(__name__)

Key = jwt.PyJWK


class OneKey:
    """The one key of an installation, whatever name a token gives it."""

    version = 0
    healthy: bool | str = True

    def __init__(self, key: Key) -> None:
        self._key = key

    async def find(self, _kid: str | None) -> Key | None:
        """The key."""
        return self._key

    async def run(self) -> None:
        """Wait until cancelled: the key stays as it is."""
        await asyncio.Event().wait()


class Jwks:
    """The keys behind a URL."""

    def __init__(
        self,
        url: str,
        algorithm: str,
        get: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._algorithm, self._get, self._clock = url, algorithm, get or fetch, clock
        self._keys: Mapping[str | None, Key] = {}
        self._document = b""
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self.version = 0  # rises when the keys change: what was verified with the old ones must be verified again

    @property
    def healthy(self) -> bool | str:
        """True once a key is known; keys stay known while their issuer is unavailable."""
        return bool(self._keys) or "the keys that tokens are verified with could not be fetched yet"

    async def find(self, kid: str | None) -> Key | None:
        """The key of this name; without a name, the only one there is. An unknown one may cause a fetch."""
        if kid not in self._keys:
            await self.refresh()
        return self._keys.get(kid)

    async def refresh(self) -> None:
        """Fetch, or wait for the fetch that is under way; at once when the last one began less than a minute ago."""
        if (self._asking is None or self._asking.done()) and self._clock() - self._asked_at >= FETCH_S_MIN:
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._fetch(), name="fetch the keys")
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=FETCH_S_MAX)

    async def run(self) -> None:
        """Fetch now and then, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S if self._keys else FETCH_S_MIN)

    async def _fetch(self) -> None:
        try:
            document = await asyncio.to_thread(self._get, self._url)
            if document != self._document:
                self._keys, self._document = key_set(document, self._algorithm), document
                self.version += 1
        except Exception as error:  # whatever the issuer's side does, tokens with known keys are verified
            _log.error("the keys for tokens could not be fetched: %s", error)


Keys = OneKey | Jwks


def key_set(document: bytes, algorithm: str) -> dict[str | None, Key]:
    """The keys of a JWKS that can verify `algorithm`, by name; an only one is found without its name too.

    Raises:
        ValueError, jwt.PyJWTError: it is not a JWKS, or holds no such key.
    """
    listed = json.loads(document)["keys"][:KEYS_MAX]
    public = [{"alg": algorithm} | one for one in listed if one.get("kty") != "oct" and "d" not in one]
    found: dict[str | None, Key] = {
        str(key.key_id or ""): key
        for key in jwt.PyJWKSet(public)  # leaves out keys of another kind
        if key.algorithm_name == algorithm and key.public_key_use in (None, "sig")
    }
    if not found:
        raise ValueError(f"there is no public key for {algorithm} among them")
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Keys that came over http could be anyone's."""

    def redirect_request(self, *redirect: Any) -> urllib.request.Request | None:
        if urlsplit(redirect[-1]).scheme != "https":
            raise ValueError(f"it redirects to {redirect[-1]}, which is no https URL")
        return super().redirect_request(*redirect)


_OPENER = urllib.request.build_opener(_HttpsRedirects)


def fetch(url: str) -> bytes:
    """GET, bounded in size and time; a redirect is followed to https only. Raises OSError or ValueError."""
    deadline = time.monotonic() + FETCH_S_MAX
    with _OPENER.open(url, timeout=FETCH_S_MAX) as answer:
        body = b""
        while part := answer.read1(8_192):
            body += part
            if len(body) > JWKS_BYTES_MAX or time.monotonic() > deadline:
                raise ValueError(f"more than {JWKS_BYTES_MAX} bytes, or slower than {FETCH_S_MAX:.0f} s")
    return body
