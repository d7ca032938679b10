"""`python -m ratelimit`: run the ratelimit service."""

from ratelimit.app import serve
from ratelimit.settings import Settings
from service.run import run, settings_of


def main() -> None:
    """Read the settings and serve; one sentence on stderr when something is wrong."""
    settings = settings_of("ratelimit", Settings)
    run("ratelimit", settings, lambda stopping: serve(settings, stopping), OSError, ValueError)


if __name__ == "__main__":
    main()
