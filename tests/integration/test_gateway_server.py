"""What a connection may do, against a real listener with a small app behind it and limits of half a second."""

import contextlib
import inspect
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.http.requests import BODY_BYTES_MAX
from gateway.http.server import PIPELINED_MAX, URL_BYTES_MAX, Listener
from tests.support.faults.raw import Answer, ask, talk
from tests.support.processes.listening import REQUEST_S, Told, listening
from tests.support.processes.stack import eventually

GIVE_UP_S = 20.0  # what does not come to its end within REQUEST_S would go on for ever: a busy machine has time
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Listener, Told]]:
    """One listener for the tests that only talk."""
    with listening() as (listener, app, _):
        yield listener, app


@pytest.fixture
def port(served: tuple[Listener, Told]) -> int:
    """Where it listens."""
    return served[0].port


def post(body: bytes, *headers: bytes, path: bytes = b"/a") -> bytes:
    """A request with a body."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), lines, body)


def refused(answer: Answer | None, status: int, problem: str) -> None:
    """This problem, and the end of the connection."""
    assert answer is not None
    assert (answer.status, answer.problem) == (status, problem)
    assert answer.last


def test_ordinary_requests_pass(port: int) -> None:
    """One after the other on one connection, whole or in pieces."""
    with talk(port) as connection:
        for _ in range(3):
            connection.send(post(b"hello"))
            answer = connection.answer()
            assert answer is not None
            assert (answer.status, answer.body, answer.last) == (200, b"/a hello", False)
        for byte in post(b"pieces"):
            connection.send(bytes([byte]))
        answer = connection.answer()
        assert answer is not None
        assert answer.body == b"/a pieces"


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize(
    ("head", "status", "problem"),
    [
        (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 102_400), 414, "url-too-long"),
        (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * URL_BYTES_MAX), 414, "url-too-long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nLong: %b\r\n\r\n" % (b"a" * 65_536), 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nLong: %b\r\n\r\n" % (b"a" * 16_384), 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nLong: %b" % (b"a" * 200_000), 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000, 431, "headers-too-large"),
    ],
    ids=["url 100 KiB", "url 8 KiB", "64 KiB", "16 KiB", "no end", "101", "100,000"],
)
def test_heads_are_bounded(port: int, head: bytes, status: int, problem: str, pieces: int) -> None:
    """In one piece or in several, with an end or without."""
    with talk(port) as connection:
        size = len(head) // pieces + 1
        for start in range(0, len(head), size):
            connection.send(head[start : start + size])
        refused(connection.answer(), status, problem)


def test_heads_just_within_the_limits_pass(port: int) -> None:
    """100 headers; 16 KiB of them; a URL of 8 KiB."""
    assert ask(port, b"GET /a HTTP/1.1\r\n" + b"a: b\r\n" * 100 + b"\r\n").status == 200
    assert ask(port, b"GET /a HTTP/1.1\r\nLong: %b\r\n\r\n" % (b"a" * 16_370)).status == 200
    assert ask(port, b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * (URL_BYTES_MAX - 1))).status == 200


def test_bodies_are_bounded_before_they_are_read(port: int, served: tuple[Listener, Told]) -> None:
    """By the announced length alone, or chunk by chunk, or by the framing around next to nothing; also of a GET."""
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    announced = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    for sent in (
        announced % (BODY_BYTES_MAX + 1),
        announced % 2**40 + b"x" * 5_000_000,
        post(b"x" * (BODY_BYTES_MAX + 1)),
        head + b"1000\r\n" + b"x" * 4096 + b"\r\n1\r\nx\r\n",
        head + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 1_000,
        head + b"1;" + b"x" * 1_000_000,
        head + b"0\r\n" + b"a: b\r\n" * 200_000,
        b"GET /a HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000,
    ):
        refused(ask(port, sent), 413, "too-large")
    with talk(port) as connection:
        connection.send(announced % 500_000 + b"x" * 500_000)
        refused(connection.answer(), 413, "too-large")
        assert connection.ended(), "what was sent too much does not turn the answer into a reset"
    assert ask(port, post(b"x" * BODY_BYTES_MAX)).status == 200
    single = b"".join(b"1\r\n%c\r\n" % 120 for _ in range(BODY_BYTES_MAX))
    assert ask(port, head + single + b"0\r\n\r\n").body == b"/a " + b"x" * BODY_BYTES_MAX
    served[1].gone.clear()


def test_nobody_is_told_to_continue_with_what_is_refused(port: int, served: tuple[Listener, Told]) -> None:
    """The app hears that the client is gone, and the client hears one answer."""
    served[1].gone.clear()
    with talk(port) as connection:
        connection.send(b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
        refused(connection.answer(), 413, "too-large")
        assert connection.ended()
    assert served[1].gone.wait(2)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a%2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a?b=% HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: x\n\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda sent: ascii(sent[:30]),
)
def test_what_is_not_http_is_a_problem_and_the_end(port: int, sent: bytes) -> None:
    """400 as a problem document, and what stands behind it is not read."""
    with talk(port) as connection:
        connection.send(sent + GET)
        refused(connection.answer(), 400, "malformed-request")
        assert connection.ended()


def test_answers_stay_in_order_when_a_later_request_is_broken(port: int) -> None:
    """What came before the garbage is answered; the garbage is not mistaken for it."""
    for garbage in (b"\x00\r\n\r\n", post(b"x" * 5_000), b"GET http://x/ HTTP/1.1\r\n\r\n"):
        with talk(port) as connection:
            connection.send(b"GET /slow HTTP/1.1\r\n\r\n" + garbage + GET)
            assert [(answer.body, answer.last) for answer in connection.answers()] == [(b"/slow ", True)]
        with talk(port) as connection:
            connection.send(b"GET /slow HTTP/1.1\r\n\r\n" + GET + garbage + GET)
            assert [(answer.status, answer.body, answer.last) for answer in connection.answers()] == [
                (200, b"/slow ", False),
                (200, b"/a ", True),
            ]


def test_pipelining_is_bounded(port: int) -> None:
    """A thousand requests at once: the first ones are answered in order, then the connection ends."""
    with talk(port) as connection:
        connection.send(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(1_000)))
        bodies = [answer.body for answer in connection.answers()]
    assert bodies == [b"/%d " % number for number in range(len(bodies))]
    assert 1 <= len(bodies) <= PIPELINED_MAX + 1


def test_a_few_pipelined_requests_are_all_answered(port: int) -> None:
    """In order, and the connection goes on."""
    with talk(port) as connection:
        for _ in range(2):
            connection.send(GET + b"GET /slow HTTP/1.1\r\n\r\n" + post(b"hi"))
            answers = [connection.answer() for _ in range(3)]
            assert [answer and answer.body for answer in answers] == [b"/a ", b"/slow ", b"/a hi"]


def test_trailers_are_not_headers(port: int, served: tuple[Listener, Told]) -> None:
    """What comes behind the body was seen by no proxy; it must not say who asks."""
    ask(port, b"POST /t HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-User-Id: bob\r\n\r\n")
    path, headers = served[1].heads[-1]
    assert path == "/t"
    assert b"x-user-id" not in dict(headers)


def test_a_client_that_stops_sending_is_answered(port: int) -> None:
    """A half-closed connection is no reason to leave; a request cut short is one."""
    assert ask(port, b"GET /slow HTTP/1.1\r\n\r\n", finish=True).status == 200
    refused(ask(port, post(b"hello")[:-2], finish=True), 400, "malformed-request")
    refused(ask(port, b"GET /a HTT", finish=True), 400, "malformed-request")
    with talk(port) as connection:
        connection.send(b"", finish=True)
        assert connection.ended()


def test_a_client_that_leaves_a_stream_is_noticed(port: int, served: tuple[Listener, Told]) -> None:
    """At once: nothing is streamed to nobody."""
    served[1].gone.clear()
    with talk(port) as connection:
        connection.send(b"GET /stream HTTP/1.1\r\n\r\n")
        assert connection.answer(head_only=True) is not None
    assert served[1].gone.wait(2)


def test_an_upgrade_is_not_followed(port: int) -> None:
    """The request is answered as what it is, and nothing behind it is read."""
    with talk(port) as connection:
        connection.send(b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET)
        assert [answer.status for answer in connection.answers()] == [200]


@pytest.mark.parametrize(
    "first",
    [b"", b"\r\n\r\n", b"GET /a HT", b"GET /a HTTP/1.1\r\nA: b\r\n", post(b"hello")[:-1], b"GET /a\r\n"],
    ids=ascii,
)
def test_a_request_must_be_complete_in_time(port: int, first: bytes) -> None:
    """Silence, or a byte now and then: the connection ends within the limit; a request begun gets an answer."""
    began = time.monotonic()
    with talk(port) as connection:
        connection.send(first)
        connection.socket.settimeout(REQUEST_S / 5)
        closed = None
        while closed is None and time.monotonic() - began < GIVE_UP_S:
            try:
                closed = connection.socket.recv(65_536, socket.MSG_PEEK)
            except TimeoutError:
                connection.send(b"\r\n" if first in {b"", b"\r\n\r\n"} else b"")
        assert closed is not None
        if first.strip():
            refused(connection.answer(), 408, "request-timeout")
        else:
            assert connection.ended()


def test_dribbling_does_not_buy_time(port: int) -> None:
    """A header line now and then, a byte of a body now and then."""
    for head in (b"GET /a HTTP/1.1\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"):
        began = time.monotonic()
        with talk(port) as connection:
            connection.send(head)
            connection.socket.settimeout(0.1)
            answer = None
            while answer is None and time.monotonic() - began < GIVE_UP_S:
                connection.send(b"a: b\r\n" if head.startswith(b"GET") else b"x")
                with contextlib.suppress(TimeoutError):
                    answer = connection.answer()
            refused(answer, 408, "request-timeout")


def test_a_client_that_does_not_read_is_left(served: tuple[Listener, Told]) -> None:
    """Whether it asks once or goes on asking: answers do not pile up, and the connection is cut within the limit."""
    listener, process = served[0], psutil.Process()
    eventually(lambda: not listener.connections, GIVE_UP_S, "the end of earlier tests' connections")
    before = process.memory_info().rss
    for times in (1, 1_000):
        with talk(listener.port) as connection:
            connection.send(b"GET /large HTTP/1.1\r\n\r\n")
            eventually(lambda: bool(listener.connections), what="its connection")
            for _ in range(times - 1):
                connection.send(b"GET /large HTTP/1.1\r\n\r\n")
            eventually(lambda: not listener.connections, GIVE_UP_S, "the end of its connection")
    assert process.memory_info().rss - before < 100_000_000


def test_slow_ones_do_not_harm_others() -> None:
    """Five hundred connections say nothing or half a word; an ordinary request is answered before any of them ends."""
    with listening(request_s=5.0) as (listener, _, _), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(talk(listener.port, GIVE_UP_S)) for _ in range(500)]
        for number, connection in enumerate(slow):
            connection.send(b"POST /a HTTP/1.1\r\nHo"[: number % 30])
        assert ask(listener.port, GET).status == 200
        assert len(listener.connections) >= 500, "they were all there"
        for connection in slow:
            connection.answers()
        eventually(lambda: not listener.connections, GIVE_UP_S, "the end of them all")


def test_one_connection_too_many_is_told_so() -> None:
    """503, and those who were there before go on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256 + 20, hard))
    try:
        with listening() as (listener, _, _):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with contextlib.ExitStack() as stack:
                there = [stack.enter_context(talk(listener.port)) for _ in range(20)]
                for connection in there:
                    connection.send(GET)
                    assert connection.answer() is not None
                told = set()
                for _ in range(50):
                    with talk(listener.port) as one_more:
                        answer = one_more.answer()
                        refused(answer, 503, "overloaded")
                        assert answer is not None
                        told |= {line for line in answer.head.split("\r\n") if line.startswith("retry-after: ")}
                assert len(told) == 3, "they must not come back as one"
                there[0].send(GET)
                assert there[0].answer() is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_draining_answers_everyone_for_the_last_time() -> None:
    """New connections and those that were idle are served once more, and told so; then nothing is left open."""
    with listening(request_s=5.0) as (listener, _, run), talk(listener.port) as old, talk(listener.port) as busy:
        old.send(GET)
        assert old.answer() is not None
        busy.send(b"GET /slow HTTP/1.1\r\n\r\n")
        run(listener.drain)
        assert [answer.last for answer in busy.answers()] == [True]
        with talk(listener.port) as new:
            new.send(GET + GET)
            assert [answer.last for answer in new.answers()] == [True]
        old.send(GET)
        assert [answer.last for answer in old.answers()] == [True]
        with talk(listener.port) as idle:
            idle.send(b"")
            assert idle.ended()


def test_closing_answers_what_was_asked() -> None:
    """Fifty requests under way: each gets its whole answer, no connection is reset."""
    with listening() as (listener, app, run), ThreadPoolExecutor(50) as pool:

        def one(_: int) -> int:
            with talk(listener.port) as connection:
                connection.send(b"GET /slow HTTP/1.1\r\n\r\n")
                return sum(answer.status for answer in connection.answers())

        pending = [pool.submit(one, number) for number in range(50)]
        eventually(lambda: len(app.heads) == 50, 5.0, "fifty requests under way")
        run(listener.close)
        assert [answer.result() for answer in pending] == [200] * 50


def test_the_insides_of_uvicorn_are_what_this_listener_leans_on() -> None:
    """An upgrade that moves them must be looked at, not merely pass."""
    assert uvicorn.__version__.startswith("0.54.")
    source = inspect.getsource(HttpToolsProtocol)
    for leaned_on in (
        "self.pipeline.appendleft((self.cycle, app))",
        "cycle, app = self.pipeline.pop()",
        "on_response=self.on_response_complete",
        "existing_cycle is None or existing_cycle.response_complete",
        "def send_400_response(self, msg: str)",
        '"headers": self.headers',
    ):
        assert leaned_on in source, leaned_on
    cycle = inspect.getsource(RequestResponseCycle)
    for leaned_on in ("self.disconnected = False", "if not self.keep_alive:", "self.response_started = False"):
        assert leaned_on in cycle, leaned_on
