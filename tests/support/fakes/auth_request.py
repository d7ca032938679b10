"""What nginx does with an `auth_request`, for tests on machines without nginx: its rules, and our README's settings.

As ngx_http_auth_request_module has it: the question is a GET over HTTP/1.0 without a body, with the headers of the
request it is about, changed as `proxy_set_header` says; variables are set from the answer; 2xx lets pass, 401 and 403
are the answer to the client (which `error_page` may replace), and anything else is an error: 500.
"""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes.stack import ROOT

README = ROOT / "services/ratelimit/README.md"
WAIT_S_MAX = 5.0
_HOP_BY_HOP = {"connection", "keep-alive", "te", "transfer-encoding", "upgrade", "expect", "host", "content-length"}


@dataclass(frozen=True)
class Told:
    """What the client is told; `passed`: by whoever is behind the proxy."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""

    @property
    def passed(self) -> bool:
        """Whether the request went through."""
        return self.status == 200


class Nginx:
    """A proxy with the settings of the README, in front of something that always answers 200."""

    def __init__(self, check_port: int, readme: Path = README) -> None:
        text = re.search(r"```nginx\n(.*?)```", readme.read_text(), re.DOTALL)
        assert text is not None
        places = dict(re.findall(r"^location ([^{]+?) \{\n(.*?)^\}", text[1], re.DOTALL | re.MULTILINE))
        self._port, self._api = check_port, places["/api/"]
        asked = re.search(r"auth_request (\S+);", self._api)
        assert asked is not None
        self._question = places[f"= {asked[1]}"]
        page = re.search(r"error_page 403 = (@\w+);", self._api)
        self._refusal = places[page[1]] if page else ""

    def asks(self, headers: Iterable[tuple[str, str]], user: str = "", address: str = "192.0.2.1") -> Told:
        """A request with these headers, of the user of its basic authentication, from this address."""
        known = {"remote_user": user, "remote_addr": address}
        status, answered = self._subrequest(headers, known)
        for name, source in re.findall(r"auth_request_set \$(\w+) \$upstream_http_(\w+);", self._api):
            known[name] = answered.get(source.replace("_", "-"), "")
        if 200 <= status < 300:
            return Told(200)
        if status == 403 and self._refusal:
            return self._refused(known)
        return Told(status if status in {401, 403} else 500)

    def _refused(self, known: dict[str, str]) -> Told:
        told = re.search(r"return (\d+)(?: '([^']*)')?;", self._refusal)
        assert told is not None
        added = re.findall(r"add_header ([\w-]+) \$(\w+) always;", self._refusal)
        headers = {name.lower(): known[variable] for name, variable in added if known[variable]}
        media = re.search(r"default_type (\S+);", self._refusal)
        if media and told[2]:
            headers["content-type"] = media[1]
        return Told(int(told[1]), headers, told[2] or "")

    def _subrequest(self, headers: Iterable[tuple[str, str]], known: dict[str, str]) -> tuple[int, dict[str, str]]:
        path = re.search(r"proxy_pass http://[\w.-]+(/\S*);", self._question)
        assert path is not None
        assert "proxy_pass_request_body off;" in self._question
        changed = dict(re.findall(r"proxy_set_header (\S+) (\S+);", self._question))
        set_to = {name.lower(): known.get(value.lstrip("$"), value.strip('"')) for name, value in changed.items()}
        lines = [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP | set_to.keys()]
        lines += [(name, value) for name, value in set_to.items() if value]  # an empty one is not sent
        head = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "ratelimit"), *lines])
        return self._exchange(f"GET {path[1]} HTTP/1.0\r\n{head}Connection: close\r\n\r\n".encode())

    def _exchange(self, sent: bytes) -> tuple[int, dict[str, str]]:
        with socket.create_connection(("127.0.0.1", self._port), WAIT_S_MAX) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        status, *lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(status.split()[1]), {name.lower(): value for name, _, value in pairs}
