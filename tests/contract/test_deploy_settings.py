"""Every setting in a manifest is one the service reads, every one it needs is there, and the values are accepted."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from deploy.docker.entrypoint import with_secrets
from order_writer.payments.provider import ProviderWrong, provider_named
from order_writer.settings import Settings as OrderWriter
from payment_simulator.provider import JOURNAL
from tests.contract.deployment import (
    OVERLAYS,
    PREFIX,
    SETTINGS,
    accept,
    compose,
    config_maps,
    documents,
    known,
    pods,
    rendered,
    required,
)

SECRET = re.compile(r"\$\{(\w+)\}|^/run/secrets/(\w+)$")


def cluster_environment(overlay: str, service: str) -> dict[str, str]:
    """The STAMPEDE_ variables of a service's container in a cluster, the pod's name as its instance."""
    container = pods(documents(overlay))[service]["containers"][0]
    (source,) = container["envFrom"]
    assert source["configMapRef"]["name"] == service
    assert container["env"] == [
        {"name": "STAMPEDE_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ]
    return config_maps(overlay)[service] | {"STAMPEDE_INSTANCE": f"{service}-0"}


def compose_environment(service: str) -> dict[str, str]:
    """The variables of a service's container; Compose reads `$$` as `$`."""
    return {
        name: str(value).replace("$$", "$") for name, value in compose()["services"][service]["environment"].items()
    }


ENVIRONMENTS = {
    **{f"compose {service}": (service, compose_environment(service)) for service in SETTINGS},
    **{f"{o} {service}": (service, cluster_environment(o, service)) for o in OVERLAYS for service in SETTINGS},
}


@pytest.mark.parametrize(("service", "environment"), ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_manifests_and_settings_agree(service: str, environment: dict[str, str]) -> None:
    """No variable that the service does not read, and none missing that it needs."""
    simulator = {JOURNAL} if environment.get("STAMPEDE_PAYMENT") == "simulated" else set()
    assert environment.keys() - known(service) <= simulator
    assert required(service) - environment.keys() == set()


@pytest.mark.parametrize(("service", "environment"), ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_the_service_accepts_the_values(service: str, environment: dict[str, str], tmp_path: Path) -> None:
    """With its secrets put in by the image's entry point, a service takes its settings."""
    for name in secrets_named(environment):
        (tmp_path / name).write_text("0123456789abcdef" * 4 + "\n")
    settings = accept(service, with_secrets(environment, tmp_path))
    assert "${" not in repr(settings)


@pytest.mark.parametrize("service", SETTINGS)
def test_compose_gives_each_service_the_secrets_it_names_and_no_others(service: str) -> None:
    """A process can read only what it needs."""
    mounted = set(compose()["services"][service].get("secrets", []))
    assert mounted == secrets_named(compose_environment(service))


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", [*SETTINGS, "topics", "migrations"])
def test_the_cluster_gives_each_pod_the_secrets_it_names_and_no_others(service: str, overlay: str) -> None:
    """A pod mounts, of the Secret of its name, exactly the keys its settings name."""
    volumes = pods(documents(overlay))[service]["volumes"]
    mounted = [volume["secret"] for volume in volumes if "secret" in volume]
    keys = {item["path"] for secret in mounted for item in secret["items"]}
    assert keys == secrets_named(config_maps(overlay)[service])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_jobs_have_what_they_read(overlay: str) -> None:
    """The topics job needs Kafka; the migrations, a command of the order-writer, Postgres and the roles to make."""
    maps = config_maps(overlay)
    assert maps["topics"].keys() == {"STAMPEDE_KAFKA"}
    needed = {"STAMPEDE_POSTGRES", "STAMPEDE_WRITER_ROLE", "STAMPEDE_READER_ROLE"}
    assert maps["migrations"].keys() == needed <= known("order-writer")
    assert required("order-writer") <= maps["migrations"].keys()
    assert set(compose()["services"]["migrations"]["environment"]) == needed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_use_the_roles_that_the_migrations_make(overlay: str) -> None:
    """By name and password; only the migrations know the tables' owner."""
    for maps in (config_maps(overlay), {s: compose_environment(s) for s in ("migrations", "order-writer", "gateway")}):
        for service, role in (("order-writer", "WRITER"), ("gateway", "READER")):
            where = urlsplit(maps[service]["STAMPEDE_POSTGRES"])
            assert f"{where.username}:{where.password}" == maps["migrations"][f"STAMPEDE_{role}_ROLE"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_renders_the_settings_the_tests_read(overlay: str) -> None:
    """The ConfigMaps that Kustomize generates hold what the tests above compared."""
    objects = rendered(overlay)
    if objects is None:
        pytest.skip("neither kubectl nor kustomize is installed: the overlays are compared unrendered only")
    found = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    referred = {
        source["configMapRef"]["name"]
        for pod in pods(objects).values()
        for container in pod["containers"]
        for source in container["envFrom"]
    }
    assert {re.sub(r"-[a-z0-9]{10}$", "", name): data for name, data in found.items()} == config_maps(overlay)
    assert referred == found.keys()


def test_a_secret_is_put_in_where_a_setting_names_it(tmp_path: Path) -> None:
    """Percent-encoded, because it goes into URLs; variables that are not Stampede's stay as they are."""
    (tmp_path / "pw").write_text("a/b@c:d\n")
    (tmp_path / "..data").mkdir()
    environment = {"STAMPEDE_POSTGRES": "postgresql://u:${pw}@h/d", "STAMPEDE_ENV": "dev", "OTHER": "${pw}"}
    assert with_secrets(environment, tmp_path) == {
        "STAMPEDE_POSTGRES": "postgresql://u:a%2Fb%40c%3Ad@h/d",
        "STAMPEDE_ENV": "dev",
        "OTHER": "${pw}",
    }


def test_a_secret_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """No process starts with a hole in a password."""
    with pytest.raises(KeyError, match="pw"):
        with_secrets({"STAMPEDE_REDIS": "redis://:${pw}@h"}, tmp_path / "missing")


def secrets_named(environment: dict[str, str]) -> set[str]:
    """The secrets that settings name, inside a value or as a file."""
    assert all(name.startswith(PREFIX) for name in environment)
    return {a or b for value in environment.values() for a, b in SECRET.findall(value)}


def test_production_sells_for_nothing_only_when_it_is_meant() -> None:
    """`none` needs a second setting there, reports of payments need none, and play money is never enough."""

    def accepted(**environment: str) -> bool:
        try:
            settings = accept("order-writer", {"STAMPEDE_ENV": "prod", **environment})
            assert isinstance(settings, OrderWriter)
            provider_named(settings.payment, environment, production=True)
        except (ValidationError, ProviderWrong):
            return False
        return True

    assert accepted(STAMPEDE_PAYMENT="webhook")
    assert not accepted(STAMPEDE_PAYMENT="none")
    assert accepted(STAMPEDE_PAYMENT="none", STAMPEDE_SELL_UNPAID="true")
    assert not accepted(STAMPEDE_PAYMENT="simulated", STAMPEDE_SELL_UNPAID="true")
    assert not accepted()
