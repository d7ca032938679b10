"""`.stack/endpoints.json`: every URL, DSN, port and pid of the running stack, for tools that attach.

Its shape is an interface to programs outside the project. It holds the operator's key: mode 0600.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devstack.failure import StackError
from devstack.layout import read_json, write_atomically

ROLES = ("gateway", "inventory", "order-writer", "ratelimit", "kafka", "postgres", "redis")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the file holds. `processes` lists, by role and in order of instance, the live ones: pid and ops URL."""

    gateway: list[str]
    admin: str
    admin_key: str
    auth: str
    kafka: str
    postgres: str
    redis: str
    topics: dict[str, str]
    processes: dict[str, list[dict[str, Any]]]


def write(path: Path, endpoints: Endpoints) -> None:
    """Replace the file as a whole."""
    write_atomically(path, json.dumps(asdict(endpoints), indent=1) + "\n")


def read(path: Path) -> Endpoints:
    """Read the file; raises StackError if no stack has written one."""
    content = read_json(path)
    if content is None:
        raise StackError(f"{path} is not there: start the stack first (`devstack up --detach`).")
    return Endpoints(**content)


def by_role(live: Iterable[tuple[str, int, str]]) -> dict[str, list[dict[str, Any]]]:
    """Group (role, pid, ops URL or nothing) in the given order; each role is there, if only with an empty list."""
    processes: dict[str, list[dict[str, Any]]] = {role: [] for role in ROLES}
    for role, pid, ops in live:
        processes[role].append({"pid": pid, "ops": ops} if ops else {"pid": pid})
    return processes


def topic_names() -> dict[str, str]:
    """Short name to topic, from the registry of topics."""
    from stampede_schemas import topics

    return {topic.name.removeprefix("stampede."): topic.name for topic in topics.TOPICS}
