"""The proxy that tests put between a service and what it needs."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.support.faults.proxy import Proxy, Way, proxy
from tests.support.processes.stack import eventually

WAIT_S = 5.0


class Echo:
    """A server that sends everything back in capitals, and remembers what it heard of each connection."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended: list[bool] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.heard.append(b"")
            self.ended.append(False)
            threading.Thread(target=self._answer, args=(connection, len(self.heard) - 1), daemon=True).start()

    def _answer(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                while said := connection.recv(65_536):
                    self.heard[number] += said
                    connection.sendall(said.upper())
            except OSError:
                pass
        self.ended[number] = True

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):  # closed before
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    """A server for each test."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def between(echo: Echo) -> Iterator[Proxy]:
    """A proxy to it."""
    with proxy(echo.port) as made:
        yield made


@contextmanager
def connected(between: Proxy) -> Iterator[socket.socket]:
    """A client through the proxy, whose bytes are not gathered."""
    with socket.create_connection(("127.0.0.1", between.port), timeout=WAIT_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def said(client: socket.socket, words: bytes) -> bytes:
    """What comes back for these words: all of it, or what came before the end."""
    client.sendall(words)
    return heard(client, len(words))


def heard(client: socket.socket, size: int) -> bytes:
    """The next bytes, fewer only at the end of the connection."""
    found = b""
    while len(found) < size and (more := client.recv(size - len(found))):
        found += more
    return found


def test_passes_everything_both_ways(between: Proxy) -> None:
    """Also more than any buffer holds; and it counts."""
    much = b"abcdefgh" * 40_000
    with connected(between) as client:
        sending = threading.Thread(target=client.sendall, args=(much,))
        sending.start()
        assert heard(client, len(much)) == much.upper()
        sending.join()
        assert between.links == 1
    counted = {Way.TO_SERVER: len(much), Way.TO_CLIENT: len(much)}
    eventually(lambda: between.passed == counted, WAIT_S, "all counted")
    eventually(lambda: between.links == 0, WAIT_S, "the link's end")


def test_an_end_is_passed_on_and_answers_still_come(between: Proxy, echo: Echo) -> None:
    """Half-closed is not closed: what the server says last arrives."""
    with connected(between) as client:
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert heard(client, 100) == b"LAST"
    eventually(lambda: echo.ended == [True], WAIT_S, "the server's end")


def test_cut_resets_what_is_open_and_takes_new_ones(between: Proxy, echo: Echo) -> None:
    """Both sides see it at once."""
    with connected(between) as first, connected(between) as second:
        assert said(first, b"one") == b"ONE"
        assert said(second, b"two") == b"TWO"
        assert between.cut() == 2
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        eventually(lambda: echo.ended == [True, True], WAIT_S, "the server's ends")
    with connected(between) as third:
        assert said(third, b"three") == b"THREE"


def test_refused_until_it_listens_again(between: Proxy) -> None:
    """On the same port."""
    with connected(between) as client:
        assert said(client, b"one") == b"ONE"
        assert between.refuse() == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", between.port), timeout=WAIT_S)
    between.listen()
    with connected(between) as client:
        assert said(client, b"two") == b"TWO"


def test_a_server_that_is_away_resets_the_client(between: Proxy, echo: Echo) -> None:
    """As if it were asked itself, nearly: the connection is taken and lost."""
    echo.close()
    with pytest.raises(ConnectionResetError), connected(between) as client:
        client.recv(1)


def test_stalled_takes_connections_and_passes_nothing_until_it_flows(between: Proxy, echo: Echo) -> None:
    """What was sent meanwhile comes late, in order, on old connections and new ones."""
    with connected(between) as old:
        assert said(old, b"one") == b"ONE"
        between.stall()
        old.sendall(b"two")
        with connected(between) as new:
            new.sendall(b"three")
            new.settimeout(0.2)
            with pytest.raises(TimeoutError):
                new.recv(1)
            assert echo.heard[0] == b"one"
            between.flow()
            new.settimeout(WAIT_S)
            assert heard(new, 5) == b"THREE"
        assert heard(old, 3) == b"TWO"


def test_cut_reaches_what_is_stalled(between: Proxy) -> None:
    """Nothing of it comes later."""
    with connected(between) as client:
        assert said(client, b"one") == b"ONE"
        between.stall()
        client.sendall(b"two")
        assert between.cut() == 1
        between.flow()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("how", [{"latency_s": 0.1}, {"bytes_per_s": 100.0}])
def test_slow_takes_its_time(between: Proxy, how: dict[str, float]) -> None:
    """Each way by itself: 10 bytes there and back take 0.2 s either way of being slow."""
    with connected(between) as client:
        assert said(client, b"0123456789") == b"0123456789"
        between.slow(**how)
        began = time.monotonic()
        assert said(client, b"abcdefghij") == b"ABCDEFGHIJ"
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("how", [{"latency_s": 100 * WAIT_S}, {"bytes_per_s": 0.01 / WAIT_S}])
def test_what_flows_again_is_not_slow(between: Proxy, how: dict[str, float]) -> None:
    """As slow as that, nothing would come while anybody waits for it."""
    with connected(between) as client:
        between.slow(**how)
        between.flow()
        assert said(client, b"k") == b"K"


@pytest.mark.parametrize("pieces", [[b"abc COMMIT xyz"], [b"abc COM", b"MIT xyz"], [b"abc ", b"C", b"OMMI", b"T xyz"]])
@pytest.mark.parametrize("delivered", [True, False])
def test_cut_where_a_pattern_passes_to_the_server(
    between: Proxy, echo: Echo, pieces: list[bytes], delivered: bool
) -> None:
    """However it is split: the server has all of it and no more, or not all of it; the client hears no answer."""
    trap = between.trap(b"COMMIT", Way.TO_SERVER, delivered=delivered)
    with connected(between) as client:
        assert said(client, b"begin") == b"BEGIN"
        for piece in pieces[:-1]:
            assert said(client, piece) == piece.upper()
        client.sendall(pieces[-1])
        assert trap.wait(WAIT_S)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: echo.ended == [True], WAIT_S, "the server's end")
    assert echo.heard[0].startswith(b"beginabc ")
    assert (b"COMMIT" in echo.heard[0]) is delivered
    assert b"xyz" not in echo.heard[0]


def test_cut_where_a_pattern_passes_to_the_client(between: Proxy, echo: Echo) -> None:
    """The server did it, and the client never hears of it."""
    trap = between.trap(b"DONE", Way.TO_CLIENT, delivered=False)
    with connected(between) as client:
        client.sendall(b"done")
        assert trap.wait(WAIT_S)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: echo.ended == [True], WAIT_S, "the server's end")
    assert echo.heard == [b"done"]


def test_a_trap_lets_some_pass_and_springs_once(between: Proxy) -> None:
    """Counted over all connections, and each pattern once, also when its last bytes are looked at twice."""
    trap = between.trap(b"x", Way.TO_SERVER, delivered=False, lets_pass=3)
    with connected(between) as first, connected(between) as second:
        assert said(first, b"xx") == b"XX"
        assert said(second, b"x") == b"X"
        assert not trap.sprung
        second.sendall(b"x")
        assert trap.wait(WAIT_S)
        assert said(first, b"xxx") == b"XXX"


def test_healed_is_as_in_the_beginning(between: Proxy) -> None:
    """Listening, flowing, without traps."""
    trap = between.trap(b"x", Way.TO_SERVER, delivered=False)
    between.stall()
    between.refuse()
    between.heal()
    with connected(between) as client:
        assert said(client, b"x") == b"X"
    assert not trap.sprung
