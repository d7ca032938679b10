"""`python -m ratelimit`: run the ratelimit service."""

import asyncio
import socket
import sys

from pydantic import ValidationError

from ratelimit.app import serve
from ratelimit.settings import Settings
from telemetry.logs import configure_logs


def main() -> int:
    """Read the settings and serve; 1 and one sentence on stderr when something is wrong."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # the fields come from the environment
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(["STAMPEDE", *map(str, first["loc"])]).upper()
        return _stop(f"setting {name}: {first['msg'].removeprefix('Value error, ')}")
    configure_logs("ratelimit", settings.instance, settings.log_level)
    try:
        with socket.create_server((settings.http_host, settings.http_port)) as listener:
            asyncio.run(serve(settings, listener))
    except (OSError, ValueError) as error:
        return _stop(str(error))
    return 0


def _stop(sentence: str) -> int:
    sys.stderr.write(f"ratelimit cannot start: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
