"""Starts the image's service with its secrets: `entrypoint.py [MODULE ARGUMENT...]`.

Secrets are files in /run/secrets. A setting may name one, as in `postgresql://stampede:${postgres_password}@db/stampede`,
so no value stands in a manifest or in the image. Percent-encoded where they are put in, since that is inside a URL.
"""

import os
import sys
from pathlib import Path
from string import Template
from urllib.parse import quote

SECRETS = Path("/run/secrets")


def with_secrets(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment with `${name}` in every STAMPEDE_ setting replaced by the secret of that name.

    Raises:
        KeyError: a setting names a secret that is not there. OSError: it cannot be read.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    secrets = {name: quote((folder / name).read_text(encoding="utf-8").strip(), safe="") for name in names}
    return {
        name: Template(value).substitute(secrets) if name.startswith("STAMPEDE_") and "${" in value else value
        for name, value in environment.items()
    }


def main() -> str:
    """Become the process; returns, with the reason, only when that is not possible."""
    command = sys.argv[1:] or [os.environ["SERVICE"].replace("-", "_")]
    try:
        environment = with_secrets(dict(os.environ), SECRETS)
    except KeyError as error:
        return f"a setting names the secret {error}, and there is no file of that name in {SECRETS}"
    except OSError as error:
        return f"a secret cannot be read: {error}; may user {os.getuid()} read it?"
    os.execve(sys.executable, [sys.executable, "-m", *command], environment)  # noqa: S606 - that is its purpose
    raise AssertionError("execve does not return")


if __name__ == "__main__":
    sys.exit(main())
