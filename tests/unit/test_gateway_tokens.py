"""Which tokens are believed, with every kind of key, and how seldom an issuer is asked for its keys."""

import asyncio
import json
import time
import warnings
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.auth import jwks
from gateway.auth.authenticator import AuthenticationRefused, authenticator
from gateway.auth.ids import Subject
from gateway.auth.jwks import Jwks, Key, OneKey, key_set
from gateway.auth.tokens import VERIFIED_MAX, Algorithm, TokenAuthenticator, TokenRules, keys_of
from gateway.http import problems
from service.problem_details import Problem
from tests.support.builders.tokens import AUDIENCE, ISSUER, SECRET, Issuer, forged

ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA", "HS256")


def believer(issuer: Issuer, folder: Path) -> TokenAuthenticator:
    """Believes what this issuer signs, by a key file."""
    file = folder / "key"
    file.write_bytes(issuer.key.encode() if issuer.algorithm == "HS256" else issuer.pem)
    algorithm: Any = issuer.algorithm
    keys = keys_of(algorithm, key_file=file, jwks_url="", production=True)
    return TokenAuthenticator(TokenRules(algorithm, ISSUER, AUDIENCE), keys)


async def ask(who: TokenAuthenticator, token: str | bytes) -> Subject | Problem:
    """Who this bearer token is."""
    return await who.subject({b"authorization": b"Bearer " + (token.encode() if isinstance(token, str) else token)})


async def refusal(who: TokenAuthenticator, token: str | bytes) -> str:
    """Why it is nobody, by 401."""
    answer = await ask(who, token)
    assert isinstance(answer, Problem), answer
    assert answer.kind is problems.UNAUTHENTICATED
    assert (b"www-authenticate", b"Bearer") in answer.response_headers()
    return answer.detail


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_good_token_names_its_subject_and_roles(algorithm: str, tmp_path: Path) -> None:
    """The party that vouches is part of the name; roles are a list, or words."""
    issuer = Issuer(algorithm)
    who = believer(issuer, tmp_path)
    assert await ask(who, issuer.token("ann")) == Subject(ISSUER, "ann")
    assert await ask(who, issuer.token("ann", roles=["admin", "x"])) == Subject(
        ISSUER, "ann", frozenset({"admin", "x"})
    )
    assert await ask(who, issuer.token("ann", roles="admin x")) == Subject(ISSUER, "ann", frozenset({"admin", "x"}))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": "-61 s"}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": "soon"}, "verified"),
        ({"exp": float("inf")}, "verified"),
        ({"nbf": "+400 s"}, "not valid yet"),
        ({"iat": "+400 s"}, "not valid yet"),
        ({"iss": "https://other.example"}, "another issuer"),
        ({"iss": None}, "claims"),
        ({"aud": "other"}, "not meant"),
        ({"aud": None}, "claims"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "verified"),
        ({"sub": "x" * 256}, "verified"),
        ({"sub": "half a pair \ud800"}, "verified"),
        ({"roles": 7}, "verified"),
    ],
    ids=str,
)
async def test_claims_must_hold(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    """401 with the reason, in our own words. Times like `+400 s` are from now."""
    issuer = Issuer("EdDSA")
    changed = {
        name: time.time() + float(value[:-2]) if isinstance(value, str) and value.endswith(" s") else value
        for name, value in changed.items()
    }
    try:
        token = issuer.token(**changed)
    except TypeError:  # the library itself refuses to make some of them
        token = jwt.api_jws.encode(str(changed).encode(), issuer.key, "EdDSA")
    detail = await refusal(believer(issuer, tmp_path), token)
    assert why in detail or "verified" in detail
    assert "other.example" not in detail


async def test_a_clock_that_is_a_little_off_is_forgiven(tmp_path: Path) -> None:
    """Thirty seconds either way."""
    issuer = Issuer("EdDSA")
    who = believer(issuer, tmp_path)
    now = time.time()
    assert isinstance(await ask(who, issuer.token(exp=now - 20)), Subject)
    assert isinstance(await ask(who, issuer.token(nbf=now + 20, iat=now + 20)), Subject)
    assert "expired" in await refusal(who, issuer.token(exp=now - 40))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_token_does_not_choose_how_it_is_verified(algorithm: str, tmp_path: Path) -> None:
    """No `none`, no public key as a secret, no other algorithm, no key it brings along or points to."""
    issuer = Issuer(algorithm)
    who = believer(issuer, tmp_path)
    for name in ("none", "None", "nOnE", "", "HS384", "RS512", "foo"):
        await refusal(who, forged({"alg": name, "typ": "JWT"}))
        await refusal(who, forged({"alg": name}, signature=b"x" * 64))
    await refusal(who, forged({"typ": "JWT"}))
    if algorithm != "HS256":
        secret = jwt.utils.base64url_encode(issuer.pem)
        for key in (issuer.pem, secret):
            signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
            head, claims, _ = forged({"alg": "HS256"}).split(".")
            signature = signed.sign(f"{head}.{claims}".encode(), key)
            mark = jwt.utils.base64url_encode(signature).decode()
            await refusal(who, f"{head}.{claims}.{mark}")
        other = Issuer(algorithm, issuer.kid)
        brought = {"jwk": other.jwk, "jku": "http://127.0.0.1:1/x", "x5u": "http://127.0.0.1:1/x"}
        await refusal(who, other.token(headers=brought))
    for other_algorithm in set(ALGORITHMS) - {algorithm}:
        await refusal(who, Issuer(other_algorithm).token())
    good = issuer.token()
    await refusal(who, good[:-6] + ("A" if good[-6] != "A" else "B") + good[-5:])
    head, claims, signature_of = good.split(".")
    await refusal(who, f"{head}.{forged({}).split('.')[1]}.{signature_of}")


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b".",
        b"..",
        b"a.b.c",
        b"\xff\xfe",
        b"x" * 8_193,
        b"[" * 4_000,
        b"eyJhbGciOiJSUzI1NiJ9..",
        b"a b",
        b"W10.e30.x",
    ],
    ids=lambda token: ascii(token[:12]),
)
async def test_what_is_no_token_is_nobody(token: bytes, tmp_path: Path) -> None:
    """401, whatever it is."""
    await refusal(believer(Issuer("EdDSA"), tmp_path), token)


async def test_headers_that_bring_no_token_are_nobody(tmp_path: Path) -> None:
    """None, two, or of another scheme; and a header of the demonstration mode has no effect."""
    who = believer(Issuer("EdDSA"), tmp_path)
    for headers in ({}, {b"authorization": None}, {b"authorization": b"Basic YTpi"}, {b"x-user-id": b"ann"}):
        answer = await who.subject(headers)
        assert isinstance(answer, Problem)
        assert answer.kind is problems.UNAUTHENTICATED


class CountedKey(OneKey):
    """The one key, and how many tokens were verified with it."""

    found = 0

    async def find(self, kid: str | None) -> Key | None:
        """See OneKey; each verification looks for the key."""
        self.found += 1
        return await super().find(kid)


async def test_a_verified_token_is_remembered_until_it_expires() -> None:
    """It is not verified again before, and is nobody's afterwards; the memory is bounded."""
    issuer = Issuer("EdDSA")
    keys = CountedKey(issuer.key.public_key())
    who = TokenAuthenticator(TokenRules("EdDSA", ISSUER, AUDIENCE), keys)
    token = issuer.token(exp=time.time() - 27)  # three seconds left, by the leeway
    assert isinstance(await ask(who, token), Subject)
    async with asyncio.timeout(20):
        while isinstance(await ask(who, token), Subject):  # noqa: ASYNC110 - no event tells of the time
            await asyncio.sleep(0.02)
    assert "expired" in await refusal(who, token)
    token, keys.found = issuer.token(), 0
    for _ in range(1_000):
        assert isinstance(await ask(who, token), Subject)
    assert keys.found == 1, "a remembered token costs microseconds, a new one a hundred"
    for number in range(VERIFIED_MAX + 5):
        who._remember(b"%d" % number, 0.0, Subject("", ""))
    assert len(who._verified) == VERIFIED_MAX


async def test_a_key_that_is_too_short_vouches_for_nobody(tmp_path: Path) -> None:
    """An RSA key of 1024 bits is no key."""
    issuer = Issuer("RS256", key=rsa.generate_private_key(65537, 1024))  # noqa: S505 - the point
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library only warns, unless it is told to refuse
        await refusal(believer(issuer, tmp_path), issuer.token())


class Asked:
    """An issuer's document, and how often it was asked for."""

    def __init__(self, *issuers: Issuer) -> None:
        self.times = 0
        self.minutes = 0
        self.publish(*issuers)

    def publish(self, *issuers: Issuer) -> None:
        """Hold these keys."""
        self.body: bytes = json.dumps({"keys": [issuer.jwk for issuer in issuers]}).encode()

    def clock(self) -> float:
        """Seconds."""
        return self.minutes * jwks.FETCH_S_MIN

    def __call__(self, url: str) -> bytes:
        """The document."""
        assert url == "u"
        self.times += 1
        if not self.body:
            raise OSError("away")
        return self.body


async def test_an_unknown_key_is_asked_for_once_a_minute_at_most() -> None:
    """However many tokens name however many keys; and a new key is found by the first that names it."""
    old, new = Issuer("EdDSA", "old"), Issuer("EdDSA", "new")
    asked = Asked(old)
    keys = Jwks("u", "EdDSA", asked, asked.clock)
    who = TokenAuthenticator(TokenRules("EdDSA", ISSUER, AUDIENCE), keys)
    assert isinstance(await ask(who, old.token()), Subject)
    asked.publish(old, new)
    for kid in ("new", "../../etc/passwd", "http://127.0.0.1:1/x", "' OR 1=1", "x" * 1_000, "\x00", ""):
        await refusal(who, new.token(headers={"kid": kid}))
    await refusal(who, forged({"alg": "EdDSA", "kid": 7}))
    assert asked.times == 1
    asked.minutes += 1
    assert isinstance(await ask(who, new.token()), Subject)
    assert asked.times == 2


async def test_a_withdrawn_key_takes_its_tokens_along() -> None:
    """What was verified with it is not remembered any longer."""
    old, new = Issuer("EdDSA", "old"), Issuer("EdDSA", "new")
    asked = Asked(old, new)
    keys = Jwks("u", "EdDSA", asked, asked.clock)
    who = TokenAuthenticator(TokenRules("EdDSA", ISSUER, AUDIENCE), keys)
    token = old.token()
    assert isinstance(await ask(who, token), Subject)
    asked.publish(new)
    asked.minutes += 1
    await keys.refresh()
    await refusal(who, token)


async def test_while_the_issuer_is_away_known_keys_are_used() -> None:
    """And before any is known, it is not the buyer's fault: 503."""
    issuer = Issuer("EdDSA")
    asked = Asked(issuer)
    good, asked.body = asked.body, b""
    keys = Jwks("u", "EdDSA", asked, asked.clock)
    who = TokenAuthenticator(TokenRules("EdDSA", ISSUER, AUDIENCE), keys)
    answer = await ask(who, issuer.token())
    assert isinstance(answer, Problem)
    assert answer.kind is problems.UNAVAILABLE
    assert "fetched" in str(who.healthy)
    for document in (good, b"", b"{", b"[]", b'{"keys":[]}', b'{"keys":[{"kty":"oct","k":"eA"}]}'):
        asked.body = document
        asked.minutes += 1
        await keys.refresh()
        assert isinstance(await ask(who, issuer.token()), Subject)
        assert "fetched" not in str(who.healthy)


def test_only_keys_that_can_verify_are_taken() -> None:
    """No secrets, none for encryption, none of another kind; one without a name is the only one."""
    good, other = Issuer("ES256", "good"), Issuer("RS256", "other")
    listed = [good.jwk, other.jwk, good.jwk | {"use": "enc", "kid": "e"}, good.jwk | {"alg": "ES384", "kid": "a"}]
    listed += [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, {"kty": "what", "kid": "w"}]
    found = key_set(json.dumps({"keys": listed}).encode(), "ES256")
    assert set(found) == {"good", None}


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    """Each with its sentence, at the start."""
    file = tmp_path / "key"
    rs, ed = Issuer("RS256"), Issuer("EdDSA")
    cases: list[tuple[Algorithm, bytes | None, str]] = [
        ("RS256", None, ""),
        ("RS256", rs.pem, "https://x"),
        ("RS256", ed.pem, ""),
        ("EdDSA", rs.pem, ""),
        ("HS256", rs.pem, ""),
        ("HS256", b"short", ""),
        ("HS256", None, "https://x"),
        ("ES256", None, "http://issuer.example/keys"),
        ("ES256", None, "http://127.0.0.1/keys"),
        ("ES256", None, "file:///etc/passwd"),
        ("ES256", b"", ""),
    ]
    for algorithm, content, url in cases:
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError, match="STAMPEDE_JWT"):
            keys_of(algorithm, key_file=None if content is None else file, jwks_url=url, production=True)
    file.write_text(SECRET)
    assert isinstance(keys_of("HS256", key_file=file, jwks_url="", production=True), OneKey)
    assert isinstance(keys_of("ES256", key_file=None, jwks_url="http://127.0.0.1/keys", production=False), Jwks)

    def wrong() -> TokenAuthenticator:
        raise ValueError("STAMPEDE_JWT_ISSUER is missing")

    with pytest.raises(AuthenticationRefused, match="STAMPEDE_JWT_ISSUER"):
        authenticator("jwt", production=True, host="::", tokens=wrong)
