"""Which bug a test build has, and how it gets into the shipped code."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILE = "STAMPEDE_PLANTED"  # a file that holds `role: bug`; it is read at each start, so that one stack serves all bugs


def plant(role: str, bugs: Mapping[str, Callable[[], None]]) -> None:
    """Put the bug that is wanted now, if it is one of this role's, into this process."""
    wanted_role, _, bug = Path(os.environ[FILE]).read_text().partition(": ")
    if wanted_role == role:
        bugs[bug]()
        print(f"PLANTED: {bug}", file=sys.stderr, flush=True)


def exchange(owner: Any, **parts: Any) -> None:
    """Put other parts into a module or class. Raises AttributeError where it has no such part."""
    for name, part in parts.items():
        getattr(owner, name)
        setattr(owner, name, part)


def for_the_first_time(what: str) -> bool:
    """Whether this happens first in the life of the bug, over all restarts."""
    try:
        Path(f"{os.environ[FILE]}.{what}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
