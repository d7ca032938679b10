"""The deployment files as data, for the tests that compare them with each other and with what the services read."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from gateway.settings import Settings as Gateway
from inventory.settings import Settings as Inventory
from order_writer.settings import Settings as OrderWriter
from ratelimit.settings import Settings as RateLimit

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("dev", "prod")
PREFIX = "STAMPEDE_"
SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": Gateway,
    "inventory": Inventory,
    "order-writer": OrderWriter,
    "ratelimit": RateLimit,
}
Document = dict[str, Any]


def known(service: str) -> set[str]:
    """The environment variables a service reads."""
    return {f"{PREFIX}{name}".upper() for name in SETTINGS[service].model_fields}


def required(service: str) -> set[str]:
    """The environment variables a service cannot start without."""
    return {f"{PREFIX}{n}".upper() for n, field in SETTINGS[service].model_fields.items() if field.is_required()}


def accept(service: str, environment: dict[str, str]) -> BaseSettings:
    """The service's settings, made of these variables as the service makes them; raises what the service would."""
    fields: dict[str, Any] = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items()}
    return SETTINGS[service](**fields)


@cache
def compose() -> Document:
    """docker-compose.yml, with anchors resolved."""
    document: Document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def load_all(path: Path) -> list[Document]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


@cache
def documents(overlay: str) -> list[Document]:
    """Every object the base and an overlay name, as written: before Kustomize patches them."""
    found = []
    for folder in (K8S / "base", K8S / "overlays" / overlay):
        resources = kustomization(folder)["resources"]
        found += [one for name in resources if name.endswith(".yaml") for one in load_all(folder / name)]
    return found


def kustomization(folder: Path) -> Document:
    """The kustomization of a folder."""
    return load_all(folder / "kustomization.yaml")[0]


def config_maps(overlay: str) -> dict[str, dict[str, str]]:
    """The settings each generated ConfigMap holds: the base's, overridden by the overlay's."""
    merged: dict[str, dict[str, str]] = {}
    for folder in (K8S / "base", K8S / "overlays" / overlay):
        for each in kustomization(folder)["configMapGenerator"]:
            into = merged.setdefault(each["name"], {})
            for name in each["envs"]:
                lines = (folder / name).read_text().splitlines()
                into.update(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return merged


@cache
def rendered(overlay: str) -> list[Document] | None:
    """What Kustomize makes of an overlay; None where neither `kubectl` nor `kustomize` is installed."""
    commands = {"kubectl": ["kubectl", "kustomize"], "kustomize": ["kustomize", "build"]}
    found = next((command for name, command in commands.items() if shutil.which(name)), None)
    if found is None:
        return None
    done = subprocess.run(
        [*found, str(K8S / "overlays" / overlay)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pods(objects: list[Document]) -> dict[str, Document]:
    """The pod specifications among these objects, by the name of what makes the pods."""
    kinds = ("Deployment", "StatefulSet", "Job")
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in objects if one["kind"] in kinds}


def of_kind(objects: list[Document], kind: str) -> list[Document]:
    """The objects of one kind."""
    return [one for one in objects if one["kind"] == kind]
