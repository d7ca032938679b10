"""The image's health: exit 0 when the process in this container says it is ready on its ops port."""

import os
import sys
from http.client import HTTPConnection, HTTPException


def main() -> int:
    """Ask /readyz and print what is wrong, which `docker inspect` shows."""
    connection = HTTPConnection("127.0.0.1", int(os.environ.get("STAMPEDE_OPS_PORT", "0")), timeout=2)
    try:
        connection.request("GET", "/readyz?verbose")
        answer = connection.getresponse()
        sys.stdout.write(answer.read(2_000).decode(errors="replace"))
    except (OSError, HTTPException) as error:
        sys.stdout.write(f"no answer: {error}\n")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
