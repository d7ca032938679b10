"""docker-compose.yml: health-gated, on loopback only, nothing with a default password."""

import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.contract.deployment import ROOT, SETTINGS, compose

Service = dict[str, Any]
SERVICES: dict[str, Service] = compose()["services"]
COMPONENTS = {"kafka", "postgres", "redis"}
JOBS = {"topics", "migrations"}


def test_the_whole_system_is_there() -> None:
    """Three components, two jobs, the four services."""
    assert SERVICES.keys() == COMPONENTS | JOBS | SETTINGS.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    """Nothing of the demonstration can be reached from another machine."""
    service = SERVICES[name]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    if service.get("network_mode") == "host":
        hosts = {key: value for key, value in service["environment"].items() if key.endswith("_HOST")}
        assert hosts.keys() == {"STAMPEDE_HTTP_HOST", "STAMPEDE_ADMIN_HOST", "STAMPEDE_OPS_HOST"}
        assert set(hosts.values()) == {"127.0.0.1"}


def test_no_port_is_taken_twice() -> None:
    """On the machine's own network each listener has its own port."""
    published = [str(port).split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    own = [str(value) for key, value in SERVICES["gateway"]["environment"].items() if key.endswith("_PORT")]
    assert len(set(published + own)) == len(published + own)


@pytest.mark.parametrize("name", SERVICES)
def test_everything_waits_for_what_it_needs_to_be_well(name: str) -> None:
    """A dependency is healthy, or a job that has ended well; being started is not enough."""
    for other, how in SERVICES[name].get("depends_on", {}).items():
        expected = "service_completed_successfully" if other in JOBS else "service_healthy"
        assert how["condition"] == expected
        # Our services take the health check of their image.
        assert other in JOBS or "healthcheck" in SERVICES[other] or "build" in SERVICES[other]


def test_each_setting_of_an_address_has_its_dependency() -> None:
    """Who is told where Kafka, Postgres or Redis are waits for them, directly or through a job."""
    needs = {
        "KAFKA": {"topics", "kafka"},
        "POSTGRES": {"migrations", "postgres"},
        "REDIS": {"redis"},
    }
    for service in SERVICES.values():
        for setting, any_of in needs.items():
            if f"STAMPEDE_{setting}" in service.get("environment", {}):
                assert any_of & service["depends_on"].keys()


@pytest.mark.parametrize("name", sorted(JOBS | SETTINGS.keys()))
def test_our_containers_cannot_become_more_than_they_are(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, and time to drain."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["stop_grace_period"] == "30s"
    assert service["restart"] == ("no" if name in JOBS else "unless-stopped")
    assert "privileged" not in service
    assert "user" not in service


def test_only_the_gateway_is_on_the_machines_network() -> None:
    """And only because its header mode insists on loopback."""
    assert {name for name, service in SERVICES.items() if "network_mode" in service} == {"gateway"}
    assert SERVICES["gateway"]["environment"]["STAMPEDE_AUTH"] == "header"


def test_one_dockerfile_builds_every_service() -> None:
    """The jobs run in the image of the order-writer, which has what they need; only there is play money."""
    for name in SETTINGS:
        build = SERVICES[name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()
        assert build["args"] == {"SERVICE": name}
        assert build.get("target") == ("demo" if name == "order-writer" else None)
        assert SERVICES[name]["image"] == f"stampede/{name}:dev"
    assert {SERVICES[job]["image"] for job in JOBS} == {"stampede/order-writer:dev"}


def test_data_outlives_containers() -> None:
    """Components and the inventory's word to itself are in named volumes."""
    mounted = {str(volume).split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert mounted == compose()["volumes"].keys()
    assert all(SERVICES[name].get("volumes") for name in COMPONENTS | {"inventory"})


def test_secrets_are_files_and_none_has_a_default() -> None:
    """Passwords and keys come from files outside the repository; no value stands in this file."""
    declared = compose()["secrets"]
    for name, secret in declared.items():
        assert secret == {"file": f"deploy/docker/secrets/{name}"}
    used = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert used == declared.keys()
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"://\w+:(?!\$\$\{)[^@\s]+@", text), "a password in a URL"
    assert not re.search(r"\$\{\w+:?-", text), "a default for a variable"
    made = (ROOT / "deploy" / "docker" / "make-secrets.sh").read_text()
    assert all(name in made for name in declared)


def test_images_have_versions() -> None:
    """What is run today is what is run tomorrow."""
    for service in SERVICES.values():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"])
        assert not service["image"].endswith(":latest")


def test_compose_itself_accepts_the_file() -> None:
    """Docker Compose parses it, where it is installed."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no `docker compose` here: the file is checked by the other tests of this module only")
    done = subprocess.run(
        [docker, "compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
