"""The keys that tokens are verified with: one from a file, or the set behind a URL, kept fresh and asked for rarely.

A key that is known is found in memory, always. An unknown one may cause a fetch, but never more than one a minute,
whatever clients send. Must not follow anything a token says.
"""

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jwt

FETCH_S_MIN = 60.0  # between two fetches, failed ones included
FETCH_S_MAX = 3.0
REFRESH_S = 300.0  # a key that its issuer withdrew is honoured for so long at most
JWKS_BYTES_MAX = 65_536
KEYS_MAX = 100
_log = logging.getLogger(__name__)

Key = jwt.PyJWK


class Keys(Protocol):
    """Where keys are found."""

    version: int  # rises when the keys change: what was verified with the old ones must be verified again

    def find(self, kid: str | None) -> Key | None:
        """The key of this name, from memory."""
        ...

    async def look_again(self) -> None:
        """Ask the issuer for its keys, if that is possible and not too soon."""
        ...

    async def run(self) -> None:
        """Keep them fresh until cancelled."""
        ...

    @property
    def healthy(self) -> bool | str:
        """True, or why no token can be verified."""
        ...


class OneKey:
    """The one key of an installation, whatever name a token gives it."""

    version = 0
    healthy = True

    def __init__(self, key: Key) -> None:
        self._key = key

    def find(self, kid: str | None) -> Key | None:
        """The key."""
        del kid
        return self._key

    async def look_again(self) -> None:
        """There is nobody to ask."""

    async def run(self) -> None:
        """It stays as it is."""


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
        self.version = 0

    @property
    def healthy(self) -> bool | str:
        """True once a key is known; keys stay known while their issuer is away."""
        return bool(self._keys) or "the keys that tokens are verified with could not be fetched yet"

    def find(self, kid: str | None) -> Key | None:
        """The key of this name; without a name, the only one there is."""
        return self._keys.get(kid)

    async def look_again(self) -> None:
        """Fetch, or wait for the fetch that is under way; at once when the last one began less than a minute ago."""
        if self._asking is None and self._clock() - self._asked_at >= FETCH_S_MIN:
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._fetch(), name="fetch the keys")
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=FETCH_S_MAX)

    async def run(self) -> None:
        """Fetch now and then."""
        while True:
            await self.look_again()
            await asyncio.sleep(REFRESH_S if self._keys else FETCH_S_MIN)

    async def _fetch(self) -> None:
        try:
            document = await asyncio.to_thread(self._get, self._url)
            if document != self._document:
                self._keys, self._document, self.version = (
                    key_set(document, self._algorithm),
                    document,
                    self.version + 1,
                )
        except Exception as error:  # whatever the issuer's side does, tokens with known keys are verified
            _log.error("the keys for tokens could not be fetched: %s", error)
        finally:
            self._asking = None


def key_set(document: bytes, algorithm: str) -> dict[str | None, Key]:
    """The keys of a JWKS that can verify `algorithm`, by name; an only one is found without its name too.

    Raises:
        ValueError: it is not a JWKS, or holds no such key.
    """
    listed = json.loads(document)["keys"]
    found: dict[str | None, Key] = {}
    for one in listed[:KEYS_MAX]:
        key = _usable(one, algorithm)
        if key is not None:
            found[str(one.get("kid", ""))] = key
    if not found:
        raise ValueError(f"there is no public key for {algorithm} among them")
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


def _usable(one: dict[str, Any], algorithm: str) -> Key | None:
    secret = one.get("kty") == "oct" or "d" in one
    if secret or one.get("use", "sig") != "sig" or one.get("alg", algorithm) != algorithm:
        return None
    try:
        return jwt.PyJWK(one, algorithm)
    except jwt.PyJWTError:  # a key of another kind
        return None


def fetch(url: str) -> bytes:
    """GET, bounded in size and time. Raises OSError or ValueError."""
    deadline = time.monotonic() + FETCH_S_MAX
    with urllib.request.urlopen(url, timeout=FETCH_S_MAX) as answer:  # noqa: S310 - an operator's setting, checked there
        body = b""
        while part := answer.read1(8_192):
            body += part
            if len(body) > JWKS_BYTES_MAX or time.monotonic() > deadline:
                raise ValueError(f"more than {JWKS_BYTES_MAX} bytes, or slower than {FETCH_S_MAX:.0f} s")
    return body
