"""The links of the stack under attack: each service meets a proxy on its way to what it needs.

All instances of a service share a link. A broker tells its clients where to come back to; so it listens once more for
each service that reaches it through a proxy.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from devstack.ports import anywhere, is_free
from tests.support.faults.proxy import Proxy, proxy

COMPONENTS = ("kafka", "postgres", "redis")
LINKS = (
    ("gateway", "kafka"),
    ("inventory", "kafka"),
    ("order-writer", "kafka"),
    ("order-writer", "postgres"),
    ("gateway", "redis"),
)


def named(role: str, component: str) -> str:
    """What faults and tables call a link."""
    return f"{role}-{component}"


class Links:
    """The proxies, by name, and the options with which `devstack up` puts them in place."""

    def __init__(self, opened: ExitStack) -> None:
        free = (port for port in anywhere() if is_free(port))
        ports = {component: next(free) for component in COMPONENTS}
        self.options = [f"--{component}-port={port}" for component, port in ports.items()]
        self._proxies: dict[str, Proxy] = {}
        for role, component in LINKS:
            behind = next(free) if component == "kafka" else ports[component]
            made = opened.enter_context(proxy(behind, next(free)))
            self._proxies[named(role, component)] = made
            tail = f",{behind}" if component == "kafka" else ""
            self.options.append(f"--detour={role}:{component}={made.port}{tail}")

    def __getitem__(self, name: str) -> Proxy:
        return self._proxies[name]

    def heal(self) -> None:
        """All of them pass everything on again."""
        for one in self._proxies.values():
            one.heal()


@contextmanager
def links() -> Iterator[Links]:
    """Proxies in front of ports where nothing listens yet: the stack is started with their options."""
    with ExitStack() as opened:
        yield Links(opened)
