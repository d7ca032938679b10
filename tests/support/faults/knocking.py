"""`python -m tests.support.faults.knocking PORT THREADS`: a crowd of clients that open one connection after the other.

Each asks once on a connection of its own, and stops when it is refused one. A connection that is reset before its
answer began is tried once more. Prints "knocking" when twice as many were answered as there are clients, and at the
end, as JSON, how often which end was met: answered, refused, reset, or what else befell a connection.
"""

import json
import socket
import sys
import threading
from collections import Counter

PATIENCE_S = 10.0
_ASK = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def knock(port: int) -> str:
    """Open a connection, ask, and read to the end of the answer; how that ended."""
    with socket.socket() as one:
        one.settimeout(PATIENCE_S)
        try:
            one.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"
        except OSError as error:
            return f"not let in: {error!r}"
        heard = b""
        try:
            one.sendall(_ASK)
            while part := one.recv(65_536):
                heard += part
                if b"\r\n\r\n" in heard and b"connection: close" not in heard.lower():
                    break
        except OSError as error:
            if not heard and isinstance(error, ConnectionResetError | BrokenPipeError):
                return "reset"
            return f"let in, heard {len(heard)} bytes: {error!r}"
        return "answered" if heard.startswith(b"HTTP/1.1 200 ") else f"let in, heard {heard[:80]!r}"


def main() -> None:
    """Knock until everybody was refused."""
    port, threads, ends = int(sys.argv[1]), int(sys.argv[2]), Counter[str]()
    counting, under_load = threading.Lock(), threading.Event()

    def run() -> None:
        before, end = "", "answered"
        while end == "answered" or (end == "reset" and before != "reset"):
            before, end = end, knock(port)
            with counting:
                ends[end] += 1
                if ends["answered"] >= 2 * threads:
                    under_load.set()

    crowd = [threading.Thread(target=run) for _ in range(threads)]
    for one in crowd:
        one.start()
    print("knocking" if under_load.wait(PATIENCE_S) else "not answered", flush=True)
    for one in crowd:
        one.join()
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
