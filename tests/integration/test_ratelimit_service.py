"""The ratelimit service as its own process: answers, health, and one sentence when it cannot start."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis

from ratelimit.limiter import POLICIES
from tests.support.fakes.auth_request import README, Nginx
from tests.support.processes.redis_server import RedisServer, redis_server
from tests.support.processes.stack import ROOT

START_SECONDS_MAX = 20.0
ADMIN_KEY = "operators-of-the-test"


def free_port() -> int:
    """A port that nobody held a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


def command(settings: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The documented way to start it, with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STAMPEDE_")}
    return [sys.executable, "-m", "ratelimit"], kept | settings


@contextmanager
def service(
    server: RedisServer, limits: str, instance: str = "ratelimit-0"
) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """A running service: a client for it and one for its ops port. It must end cleanly on SIGTERM."""
    http_port, ops_port = free_port(), free_port()
    argv, environment = command(
        {
            "STAMPEDE_REDIS": server.url,
            "STAMPEDE_LIMITS": limits,
            "STAMPEDE_INSTANCE": instance,
            "STAMPEDE_ADMIN_KEY_SHA256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest(),
            "STAMPEDE_HTTP_PORT": str(http_port),
            "STAMPEDE_OPS_PORT": str(ops_port),
        }
    )
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{http_port}") as http,
            httpx.Client(base_url=f"http://127.0.0.1:{ops_port}") as ops,
        ):
            until_ready(ops, process)
            yield http, ops
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
    finally:
        process.kill()
        process.communicate()


def until_ready(ops: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Wait for /readyz."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        assert process.poll() is None, "the service ended"
        assert time.monotonic() < deadline, "the service did not become ready"
        try:
            if ops.get("/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.02)  # the pause of a poll with a deadline


def test_it_checks_lists_and_tells_its_operators() -> None:
    """A batch is judged in order; policies are shown; metrics count; Redis may die under it; bad input is a 422."""
    with redis_server() as server, service(server, "user:token_bucket:2/h,address:token_bucket:9/h") as (http, ops):
        subjects = [{"user": "a", "address": "192.0.2.1"}] * 3 + [{"user": "b"}]
        verdicts = http.post("/v1/check", json={"subjects": subjects}).raise_for_status().json()["verdicts"]
        assert [verdict["allowed"] for verdict in verdicts] == [True, True, False, True]
        assert verdicts[2]["policy"] == "user"
        assert verdicts[2]["headers"]["Retry-After"] == str(verdicts[2]["retry_after_s"])
        listed = http.get("/v1/policies").raise_for_status().json()["policies"]
        assert listed[0] == {
            "name": "user",
            "scope": "user",
            "algorithm": "token_bucket",
            "quota": 2,
            "window_s": 3600.0,
            "burst": 2,
        }
        for wrong in ("{}", '{"subjects": []}', '{"subjects": [{"user": ""}]}', '{"subjects": [{"userId": "a"}]}', "["):
            answer = http.post("/v1/check", content=wrong, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        server.stop()
        (verdict,) = http.post("/v1/check", json={"subjects": [{"user": "a"}]}).raise_for_status().json()["verdicts"]
        assert (verdict["allowed"], verdict["degraded"]) == (True, True)
        assert ops.get("/livez").status_code == ops.get("/readyz").status_code == httpx.codes.OK
        metrics = ops.get("/metrics").raise_for_status().text
        assert 'stampede_limit_checks_total{outcome="allowed"} 4.0' in metrics
        assert "stampede_limit_checks_degraded_total 1.0" in metrics
        assert "stampede_limit_degraded_state 1.0" in metrics


def change(http: httpx.Client, limits: str, admin_key: str = ADMIN_KEY) -> httpx.Response:
    """An operator puts other limits in force."""
    return http.put("/v1/policies", json={"limits": limits}, headers={"Authorization": f"Bearer {admin_key}"})


def quotas(http: httpx.Client) -> list[int]:
    """Of the policies in force."""
    return [policy["quota"] for policy in http.get("/v1/policies").raise_for_status().json()["policies"]]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process will do within a second or two."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "the other process did not follow"
        time.sleep(0.05)  # the pause of a poll with a deadline


def test_limits_change_for_all_and_outlive_restarts_and_a_flush() -> None:
    """For operators only, checked before; the other process follows, a new one begins with them, a flush is healed."""
    with redis_server() as server:
        with service(server, "user:token_bucket:2/h") as (one, _), service(server, "user:token_bucket:2/h") as (two, _):
            assert change(one, "user:token_bucket:1/h", "guess").status_code == 401
            unreadable = change(one, "user:leaky:1/h")
            assert (unreadable.status_code, "algorithm 'leaky'" in unreadable.json()["detail"]) == (422, True)
            assert quotas(one) == [2]
            changed = change(one, "user:token_bucket:7/h,address:sliding_window:3/min")
            assert (changed.status_code, changed.json()["policies"][0]["quota"]) == (200, 7)
            until(lambda: quotas(two) == [7, 3])
            with Redis.from_url(server.url) as redis:
                redis.flushall()
                until(lambda: redis.exists(POLICIES) == 1)
            assert change(two, "user:token_bucket:9/h").json()["version"] > changed.json()["version"]
            until(lambda: quotas(one) == [9])
            server.stop()
            away = change(one, "user:token_bucket:1/h")
            assert (away.status_code, away.json()["retryable"]) == (503, True)
            server.start()
            until(lambda: quotas(one) == quotas(two) == [9])
            with Redis.from_url(server.url) as redis:
                until(lambda: redis.exists(POLICIES) == 1)
        with service(server, "user:token_bucket:2/h") as (three, _):
            assert quotas(three) == [9]
            assert change(three, "").json()["policies"] == []


def test_a_proxy_asks_about_one_request() -> None:
    """204 and then 403 with the headers, which nginx' auth_request can use, or 429 for who passes that on."""
    with redis_server() as server, service(server, "user:token_bucket:1/h,address:token_bucket:2/h") as (http, _):
        who = {"X-User-Id": "ann", "X-Real-IP": "2001:db8::1"}
        assert http.get("/v1/check", headers=who).status_code == 204
        refused = http.get("/v1/check", headers=who)
        assert refused.status_code == 403
        assert refused.headers["ratelimit-policy"] == '"user";q=1;w=3600'
        assert refused.headers["ratelimit"] == f'"user";r=0;t={refused.headers["retry-after"]}'
        assert refused.json()["type"] == "/problems/rate-limited"
        bob = {"X-User-Id": "bob", "X-Real-IP": "2001:db8::2"}
        assert http.get("/v1/check", headers=bob).status_code == 204
        carl = {"X-User-Id": "carl", "X-Real-IP": "2001:db8::ffff"}
        assert http.get("/v1/check?refused=429", headers=carl).status_code == 429
        assert http.get("/v1/check").status_code == 204
        assert http.get("/v1/check?refused=500").status_code == 422
        large = http.post("/v1/check", content=b"[" * 300_000, headers={"content-type": "application/json"})
        assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")


LIMITS_OF_A_PROXY = "user:token_bucket:1/h,address:token_bucket:1000/h"
ODD_NAMES = ["", "ann", "x" * 300, "x" * 60_000, "J\u00f6rg", "a b", '"', "%00", "\U0001fa94"]
ODD_HEADERS = [
    [],
    [("Content-Type", "application/json"), ("Content-Length", "7")],
    [("Content-Encoding", "gzip"), ("Accept", "image/png"), ("Range", "bytes=0-1")],
    [("X-User-Id", "somebody else"), ("X-User-Id", ""), ("X-Real-IP", "127.0.0.1")],
    [("Authorization", "Bearer x"), ("Cookie", "c" * 8_000), ("X-HTTP-Method-Override", "PUT")],
]


def test_whatever_nginx_asks_is_answered_with_yes_or_no() -> None:
    """`auth_request` makes an error 500 of anything but 2xx, 401 and 403; with Redis away, too."""
    with redis_server() as server, service(server, LIMITS_OF_A_PROXY) as (http, _):
        nginx = Nginx(http.base_url.port or 0)
        for away in (False, True):
            if away:
                server.stop()
            for name in ODD_NAMES:
                for headers in ODD_HEADERS:
                    for address in ("192.0.2.1", "2001:db8::1", "unix:", "", "9" * 5_000):
                        told = nginx.asks(headers, name, address)
                        assert told.status in {200, 429}, (away, name[:9], headers, address[:9], told)
            assert nginx.asks([], "").passed, "without a name, only the address counts"


def test_nginx_tells_its_clients_what_the_limit_is() -> None:
    """With the README's settings a no is a 429 with its headers, as a problem; passed on as a 429 it would be a 500."""
    with redis_server() as server, service(server, LIMITS_OF_A_PROXY) as (http, _):
        nginx = Nginx(http.base_url.port or 0)
        assert nginx.asks([], "bob").passed
        assert nginx.asks([("X-User-Id", "dan")], "bob").status == 429, "a client does not choose as whom it counts"
        told = nginx.asks([], "bob")
        assert told.headers["ratelimit-policy"] == '"user";q=1;w=3600'
        assert told.headers["ratelimit"] == f'"user";r=0;t={told.headers["retry-after"]}'
        assert told.headers["content-type"] == "application/problem+json"
        assert json.loads(told.body)["type"] == "/problems/rate-limited"
        plain = README.read_text().replace("/v1/check;", "/v1/check?refused=429;")
        with tempfile.NamedTemporaryFile("w", suffix=".md") as other:
            other.write(plain)
            other.flush()
            assert Nginx(http.base_url.port or 0, Path(other.name)).asks([], "bob").status == 500


def test_every_no_is_of_a_kind_that_has_a_page() -> None:
    """The same kinds as the gateway's, whatever Python calls a status."""
    with redis_server() as server, service(server, LIMITS_OF_A_PROXY) as (http, _):
        http.get("/v1/check", headers={"X-User-Id": "eve"})
        refused = [
            http.get("/v1/check", headers={"X-User-Id": "eve"}),
            http.get("/v1/check?refused=500"),
            http.get("/none"),
            http.put("/v1/check"),
            http.post("/v1/check", content=b"[" * 300_000, headers={"content-type": "application/json"}),
            change(http, "x", "guess"),
            change(http, "x"),
        ]
        assert [answer.status_code for answer in refused] == [403, 422, 404, 405, 413, 401, 422]
        for answer in refused:
            problem = answer.json()
            assert (ROOT / "docs" / f"{problem['type']}.md".lstrip("/")).is_file(), problem
            assert {"title", "status", "detail", "retryable", "trace_id"} <= problem.keys()


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"STAMPEDE_LIMITS": "user:token_bucket:5/s"}, 2, "STAMPEDE_REDIS: Field required"),
        (
            {"STAMPEDE_REDIS": "redis://x", "STAMPEDE_LIMITS": "user:leaky:5/s"},
            2,
            "STAMPEDE_LIMITS: .*algorithm 'leaky'",
        ),
        ({"STAMPEDE_REDIS": "http://x", "STAMPEDE_LIMITS": ""}, 1, "Redis URL"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, str], code: int, said: str) -> None:
    """It ends with a failure and says which setting is wrong, on one line."""
    argv, environment = command(settings)
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == code
    assert re.search(said, ended.stderr)
    assert len(ended.stderr.splitlines()) == 1


def test_a_busy_port_is_one_sentence() -> None:
    """It names the address it could not have."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        argv, environment = command(
            {"STAMPEDE_REDIS": "redis://127.0.0.1:1", "STAMPEDE_LIMITS": "", "STAMPEDE_HTTP_PORT": str(port)}
        )
        ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert str(port) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
