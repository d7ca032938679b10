"""Requests as nobody should send them, by a seed: odd in known ways, then cut and scratched."""

import json
import random
from dataclasses import dataclass

METHODS = (
    ("POST",) * 12 + ("GET",) * 6 + ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO", "get", "", "POST ", "P\x00ST")
)
TARGETS = (
    "/v1/purchases",
    "/v1/purchases",
    "/v1/purchases",
    "/v1/purchases/",
    "/v1/purchases/x",
    "/v1/purchases/%00",
    "/v1/purchases?limit=-1",
    "/v1/purchases?limit=1000000000",
    "/v1/purchases?cursor=forged",
    "/v1/purchases/x?wait=9",
    "/v1/purchases/x/cancel",
    "/v1/products",
    "/v1/products/%F0%9F%AA%94",
    "/v1/products/..%2f..%2fetc",
    "/v1/products/%zz",
    "//v1/purchases",
    "/v1//purchases",
    "/V1/PURCHASES",
    "/v1/purchases#x",
    "/v1/purchases%20",
    "/v1/payments/webhook",
    "http://x/v1/purchases",
    "*",
    "x",
    "",
    "/" + "a" * 9_000,
    "/%c0%af",
    "/\xff",
    "/livez",
    "/admin/v1/products",
    "/docs",
    "/v1/purchases?userId=bob&access_token=x",
    "/v1/products?" + "a=b&" * 500,
    "/\t",
    "/v1/products HTTP/1.1",
)
VERSIONS = ("HTTP/1.1",) * 12 + ("HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "HTTP/1.1 ", "http/1.1", "", "HTTP/1.1\x00")
HEADERS = (
    "Host: y",
    "Host:",
    "Content-Type: text/plain",
    "Content-Type: application/json; charset=utf-16",
    "Content-Encoding: gzip",
    "Content-Length: 5",
    "Content-Length: 99999999999999999999",
    "Content-Length: -1",
    "Content-Length: 0x10",
    "Content-Length:",
    "Content-Length: 5, 5",
    "Content-Length : 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding:\x0bchunked",
    "Expect: 100-continue",
    "Expect: 200-ok",
    "Connection: close",
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "X-User-Id: bob",
    "X-User-Id:",
    "X-User-Id: \xe9",
    "X-User-Id: a\nb",
    "Idempotency-Key: two",
    "Idempotency-Key:",
    'Idempotency-Key: "',
    "Idempotency-Key: \xff",
    "Idempotency-Key: " + "k" * 256,
    "Prefer: wait=1",
    "Prefer: wait=-1",
    "Prefer: wait=99999999999999999999",
    "Prefer: ;;,=",
    "traceparent: zz",
    "traceparent: " + "0" * 5_000,
    "baggage: " + "a=b," * 1_000,
    "Authorization: Bearer x",
    "Authorization: Basic",
    "X-HTTP-Method-Override: DELETE",
    "X-Forwarded-For: 1.1.1.1, 2.2.2.2",
    "X-Forwarded-For: \x00",
    'Forwarded: for="[::1]"',
    "If-None-Match: *",
    'If-None-Match: "',
    "Last-Event-ID: -1",
    "Range: bytes=0-0",
    "Cookie: " + "c" * 17_000,
    "A" * 5_000 + ": b",
    " folded",
    "no colon",
    ": no name",
    "Na me: x",
    "Name\x00: x",
    "Name: \x00",
    "Name: \x1b[31m",
    "Origin: https://evil.example",
)
VALUES = (
    "0",
    "-1",
    "1.5",
    '"1"',
    "true",
    "null",
    "[]",
    "{}",
    "NaN",
    "1e999",
    "-0",
    "01",
    "2147483648",
    "9223372036854775808",
    "9" * 3_000,
    '"' + "a" * 300 + '"',
    '""',
    '"../"',
    '"\\u0000"',
    '"\\ud800"',
    '"\u202etea"',
    '"t\u0435a"',
    '"=1+1"',
    '"a\\nb"',
    "[" * 1_000,
)
SCRATCHES = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"\xff",
    b"\xef\xbb\xbf",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"%",
    b"{",
    b'"',
)
HEADERS_MAX = 130
PARTS = ("line", "headers", "headers", "framing", "body", "value", "nothing")
FIELDS = ("product_id", "quantity", "payment_method", "price", "userId", "status")


@dataclass(frozen=True)
class Garbage:
    """What is sent over one connection, and in how many pieces."""

    data: bytes
    pieces: int


def requests(seed: int, product: str) -> "Requests":
    """An endless supply; the same seed gives the same."""
    return Requests(random.Random(seed), product)


class Requests:
    """Draws connections' worth of bytes."""

    def __init__(self, chance: random.Random, product: str) -> None:
        self._chance, self._product, self._drawn = chance, product, 0

    def draw(self) -> Garbage:
        """One to four requests, scratched as a whole now and then, sent in one piece or in several."""
        chance = self._chance
        data = b"".join(self._request() for _ in range(chance.choice((1, 1, 1, 1, 2, 4))))
        for _ in range(chance.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 5))):
            data = self._scratched(data)
        return Garbage(data, chance.choice((1, 1, 1, 2, 5)))

    def _request(self) -> bytes:
        """Mostly a good purchase with one thing wrong: two things wrong hide each other."""
        chance = self._chance
        self._drawn += 1
        wrong = {chance.choice(PARTS)} if chance.random() < 0.7 else set(chance.choices(PARTS, k=3))
        body = self._body("body" in wrong, "value" in wrong)
        line = "POST /v1/purchases HTTP/1.1"
        if "line" in wrong:
            line = f"{chance.choice(METHODS)} {chance.choice(TARGETS)} {chance.choice(VERSIONS)}"
        usual = ["Host: x", "Content-Type: application/json", "X-User-Id: ann", f"Idempotency-Key: k{self._drawn}"]
        if "headers" in wrong:
            usual = [one for one in usual if chance.random() < 0.9] + chance.choices(
                HEADERS, k=chance.choice((1, 1, 2))
            )
            chance.shuffle(usual)
        if chance.random() < 0.02:
            usual += [f"N{number}: v" for number in range(HEADERS_MAX)]
        framing, framed = self._framed(body) if "framing" in wrong else ([f"Content-Length: {len(body)}"], body)
        head = "\r\n".join([line, *usual, *framing]) + "\r\n\r\n"
        return head.encode("latin-1", "replace") + framed

    def _framed(self, body: bytes) -> tuple[list[str], bytes]:
        chance = self._chance
        match chance.randrange(8):
            case 0:
                return [], body
            case 1:
                return [f"Content-Length: {len(body) + chance.choice((-2, -1, 1, 7))}"], body
            case 2:
                return [f"Content-Length: {len(body)}"] * 2, body
            case 3:
                return ["Transfer-Encoding: chunked", f"Content-Length: {len(body)}"], self._chunked(body)
        return ["Transfer-Encoding: chunked"], self._chunked(body)

    def _chunked(self, body: bytes) -> bytes:
        chance = self._chance
        size = chance.choice((1, 7, 64, 5_000))
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        extension = chance.choice((b"", b"", b"", b";a=b", b" ", b";" + b"x" * 3_000))
        chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
        return chunks + chance.choice(
            (b"0\r\n\r\n",) * 6 + (b"", b"0\r\n", b"-1\r\n", b"0\r\nX-User-Id: bob\r\n\r\n", b"zz\r\n")
        )

    def _body(self, odd: bool, odd_value: bool) -> bytes:
        chance = self._chance
        fields = {"product_id": json.dumps(self._product if chance.random() < 0.5 else "no-such"), "quantity": "1"}
        if odd_value:
            fields[chance.choice(FIELDS)] = chance.choice(VALUES)
        pairs = [f'"{name}":{value}' for name, value in fields.items()]
        if odd and chance.random() < 0.3:
            pairs.append(chance.choice(pairs))
        text = "{" + ",".join(pairs) + "}"
        if odd:
            deep = ("[" * 4_000, '{"a":' * 600, "", "[]", "null", "0")
            text = chance.choice((text + text, text + "x", text[:-1], "\ufeff" + text, " " * 5_000 + text, *deep))
        return text.encode("utf-16" if odd and chance.random() < 0.1 else "utf-8", "surrogatepass")

    def _scratched(self, data: bytes) -> bytes:
        chance = self._chance
        at = chance.randrange(len(data) + 1)
        length = chance.choice((1, 1, 2, 16))
        match chance.randrange(5):
            case 0:
                return data[:at] + chance.choice(SCRATCHES) + data[at:]
            case 1:
                return data[:at] + data[at + length :]
            case 2:
                return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 3:
                return data[:at] + data[max(0, at - length) : at] + data[at:]
        return data[:at]
