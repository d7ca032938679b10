"""The services of Stampede as processes: their commands, ports and environment. The one place to change them.

Pure but for the ports, which are taken through `Ports`. Must not start anything.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from devstack import probes, tokens
from devstack.layout import Layout
from devstack.ports import Ports
from devstack.supervisor import ProcessSpec

SERVICES = ("inventory", "order-writer", "ratelimit", "gateway")
LIMITS = "user:token_bucket:50/s,address:token_bucket:100000/s"
WRITER, READER = "stampede_writer", "stampede_reader"  # roles of the database, see order_writer/postgres/roles.py
ONE_SHOT_WAIT_S = 60.0
# -P: the working folder has parts named like packages (`.stack/redis`); it must not be imported from.
PYTHON = (sys.executable, "-P", "-m")


@dataclass(frozen=True, slots=True)
class Addresses:
    """How clients reach the components: Kafka `host:port`, Postgres and Redis as URLs with their passwords."""

    kafka: str
    postgres: str
    redis: str

    def by(self, proxied: Iterable["ProxiedRoute"]) -> "Addresses":
        """The same, where what stands in between is met first."""
        ports = {route.component: route.port for route in proxied}
        return Addresses(
            f"127.0.0.1:{ports['kafka']}" if "kafka" in ports else self.kafka,
            _moved(self.postgres, ports.get("postgres")),
            _moved(self.redis, ports.get("redis")),
        )


class ProxiedRoute(NamedTuple):
    """A service reaches a component by `port` of this machine, where somebody (a test) stands in between.

    A broker tells its clients where to come back to: for such clients it listens at `behind` and tells them `port`.
    """

    role: str
    component: str
    port: int
    behind: int = 0


def _moved(url: str, port: int | None) -> str:
    parts = urlsplit(url)
    if port is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}"))


def inherited() -> dict[str, str]:
    """The environment every child gets: the person's, without settings of Stampede left over in the shell."""
    return {key: value for key, value in os.environ.items() if not key.startswith("STAMPEDE_")}


def provision(addresses: Addresses) -> tuple[str, ...]:
    """The one-shot that makes and checks the topics."""
    return (*PYTHON, "eventlog", "provision", "--kafka", addresses.kafka)


def migrate() -> tuple[str, ...]:
    """The one-shot that brings the database's schema up to date."""
    return (*PYTHON, "order_writer", "migrate")


def one_shot_environment(layout: Layout, addresses: Addresses, overrides: Mapping[str, str]) -> dict[str, str]:
    """What the one-shots need to reach the components; the tables' owner makes the roles of the others."""
    own = {
        "STAMPEDE_POSTGRES": addresses.postgres,
        "STAMPEDE_WRITER_ROLE": f"{WRITER}:{layout.secret(WRITER)}",
        "STAMPEDE_READER_ROLE": f"{READER}:{layout.secret(READER)}",
    }
    return {**inherited(), **_shared(addresses), **own, **overrides}


def service(
    role: str,
    index: int,
    layout: Layout,
    ports: Ports,
    addresses: Addresses,
    overrides: Mapping[str, str],
    module: str | None = None,
) -> ProcessSpec:
    """Instance `index` (from 0) of a service; `overrides` are environment variables that win over these.

    `module` is what `python -m` runs instead of the service's own: a test build of it.
    """
    name = f"{role}-{index}"
    ops = ports.take(f"{name}.ops")
    own: dict[str, str] = {}
    address = ""
    if role == "gateway":
        http = ports.take(name)
        address = f"http://127.0.0.1:{http}"
        own = {
            "STAMPEDE_HTTP_HOST": "127.0.0.1",
            "STAMPEDE_HTTP_PORT": str(http),
            "STAMPEDE_ADMIN_PORT": str(ports.take(f"{name}.admin")),
            "STAMPEDE_ADMIN_KEY_SHA256": hashlib.sha256(layout.secret("admin-key").encode()).hexdigest(),
            "STAMPEDE_AUTH": "header",
            **tokens.settings(layout),
            "STAMPEDE_POSTGRES": _postgres_as(READER, layout, addresses),
            "STAMPEDE_IDENTITY_KEY": layout.secret("identity-key"),
            "STAMPEDE_WEBHOOK_SECRET": layout.secret("webhook-secret"),
            "STAMPEDE_LIMITS": LIMITS,
        }
    elif role == "inventory":
        own = {"STAMPEDE_SESSION_TIMEOUT_S": "10", "STAMPEDE_DATA_DIR": str(layout.root / "faust" / name)}
    elif role == "order-writer":
        own = {
            "STAMPEDE_POSTGRES": _postgres_as(WRITER, layout, addresses),
            "STAMPEDE_PAYMENT": "simulated",
            "STAMPEDE_PAYMENT_JOURNAL": str(layout.payments),
        }
    elif role == "ratelimit":
        http = ports.take(name)
        address = f"http://127.0.0.1:{http}"
        own = {
            "STAMPEDE_HTTP_HOST": "127.0.0.1",
            "STAMPEDE_HTTP_PORT": str(http),
            "STAMPEDE_ADMIN_KEY_SHA256": hashlib.sha256(layout.secret("admin-key").encode()).hexdigest(),
            "STAMPEDE_LIMITS": LIMITS,
        }
    environment = {
        **inherited(),
        **_shared(addresses),
        "STAMPEDE_INSTANCE": name,
        "STAMPEDE_OPS_HOST": "127.0.0.1",
        "STAMPEDE_OPS_PORT": str(ops),
        "STAMPEDE_SPAN_FILE": str(layout.spans / f"{name}.jsonl"),
        **own,
        **overrides,
    }
    return ProcessSpec(
        name=name,
        role=role,
        command=(*PYTHON, module or role.replace("-", "_")),
        env=environment,
        probe=probes.ready(ops),
        address=address,
        ops=f"http://127.0.0.1:{ops}",
        cwd=layout.root,
    )


def admin_url(ports: Ports) -> str:
    """The operator API: that of the first gateway."""
    return f"http://127.0.0.1:{ports.take('gateway-0.admin')}"


def _postgres_as(role: str, layout: Layout, addresses: Addresses) -> str:
    """The same database for a role that may do less than its owner."""
    parts = urlsplit(addresses.postgres)
    where = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{layout.secret(role)}@{where}"))


def _shared(addresses: Addresses) -> dict[str, str]:
    return {
        "STAMPEDE_ENV": "dev",
        "STAMPEDE_KAFKA": addresses.kafka,
        "STAMPEDE_REDIS": addresses.redis,
        "STAMPEDE_TRACE_SAMPLE": "1.0",
        "PYTHONUNBUFFERED": "1",
    }
