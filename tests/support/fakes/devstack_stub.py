"""A stand-in for a service, to supervise: `devstack_stub.py PORT [crash|stubborn|deaf]`.

`crash` says why and ends at once; `stubborn` ignores SIGTERM; `deaf` runs but listens on nothing.
"""

import http.server
import signal
import sys
import threading


class Ready(http.server.BaseHTTPRequestHandler):
    """Answers every GET with 200."""

    def do_GET(self) -> None:
        """The health check."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Health checks are not worth a line."""


def main() -> None:
    """Behave as the arguments say until told to stop."""
    port, behaviour = int(sys.argv[1]), (sys.argv[2:] or ["plain"])[0]
    print(f"a {behaviour} stub starts", flush=True)
    if behaviour == "crash":
        sys.exit("the setting STAMPEDE_X is missing")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, (lambda *_: None) if behaviour == "stubborn" else (lambda *_: stop.set()))
    if behaviour != "deaf":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Ready)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.wait(0.1):
        pass


if __name__ == "__main__":
    main()
