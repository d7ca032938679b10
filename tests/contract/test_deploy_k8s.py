"""The Kubernetes manifests: valid, hardened, and true to what the services are. No cluster is needed, none was used."""

import re
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics as GatewayMetrics
from order_writer.ops.metrics import Metrics
from order_writer.settings import Settings as OrderWriter
from stampede_schemas.topics import DECISIONS, PARTITIONS, REQUESTS
from telemetry import names
from tests.contract.deployment import (
    K8S,
    OVERLAYS,
    ROOT,
    SETTINGS,
    Document,
    config_maps,
    documents,
    kustomization,
    of_kind,
    pods,
    rendered,
)

KUBERNETES = ("1.32", "1.35")  # the oldest and the newest the manifests are checked for
# kubernetes-validate has no schema of KEDA's own kind, so this small one stands in: the fields we use, no others.
SCALED_OBJECT: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "required": ["apiVersion", "kind", "name"],
                    "additionalProperties": False,
                    "properties": {
                        "apiVersion": {"const": "apps/v1"},
                        "kind": {"enum": ["Deployment", "StatefulSet"]},
                        "name": {"type": "string"},
                    },
                },
                "minReplicaCount": {"type": "integer", "minimum": 1},
                "maxReplicaCount": {"type": "integer", "maximum": PARTITIONS},
                "pollingInterval": {"type": "integer", "minimum": 1},
                "cooldownPeriod": {"type": "integer", "minimum": 0},
                "fallback": {
                    "type": "object",
                    "required": ["failureThreshold", "replicas"],
                    "additionalProperties": False,
                    "properties": {
                        "failureThreshold": {"type": "integer", "minimum": 1},
                        "replicas": {"type": "integer", "minimum": 1},
                        "behavior": {
                            "enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
                        },
                    },
                },
                "advanced": {"type": "object"},
                "triggers": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/trigger"}},
            },
        },
    },
    "$defs": {
        "trigger": {
            "type": "object",
            "required": ["type", "metadata"],
            "additionalProperties": False,
            # KEDA reads every value of `metadata` as text.
            "properties": {
                "type": {"enum": ["kafka", "cron"]},
                "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "if": {"properties": {"type": {"const": "kafka"}}},
            "then": {
                "properties": {
                    "metadata": {
                        "required": ["bootstrapServersFromEnv", "consumerGroup", "topic", "lagThreshold"],
                        "properties": {
                            "offsetResetPolicy": {"const": "earliest"},
                            "allowIdleConsumers": {"const": "false"},
                            "lagThreshold": {"pattern": "^[1-9][0-9]*$"},
                        },
                    }
                }
            },
            "else": {"properties": {"metadata": {"required": ["timezone", "start", "end", "desiredReplicas"]}}},
        }
    },
}

# As in the CustomResourceDefinition of the Prometheus operator: the fields we use, no others.
PROMETHEUS_RULE: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "spec": {
            "type": "object",
            "required": ["groups"],
            "additionalProperties": False,
            "properties": {"groups": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/group"}}},
        },
    },
    "$defs": {
        "group": {
            "type": "object",
            "required": ["name", "rules"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "rules": {"type": "array", "items": {"$ref": "#/$defs/rule"}}},
        },
        "rule": {
            "type": "object",
            "required": ["alert", "expr", "labels", "annotations"],
            "additionalProperties": False,
            "properties": {
                "alert": {"type": "string", "pattern": "^[A-Za-z]+$"},
                "expr": {"type": "string"},
                "for": {"type": "string", "pattern": "^[0-9]+[smh]$"},
                "labels": {
                    "type": "object",
                    "required": ["severity"],
                    "additionalProperties": {"type": "string"},
                    "properties": {"severity": {"enum": ["page", "ticket"]}},
                },
                "annotations": {
                    "type": "object",
                    "required": ["summary", "runbook"],
                    "additionalProperties": {"type": "string"},
                },
            },
        },
    },
}
FOREIGN_KINDS = {"ScaledObject", "PrometheusRule"}  # of KEDA and the Prometheus operator


def plain_and_rendered() -> list[Any]:
    """Each overlay as its plain documents, and as Kustomize renders it where that is installed."""
    reason = "neither kubectl nor kustomize is installed: the plain documents are checked, the rendered ones are not"
    params = []
    for overlay in OVERLAYS:
        params.append(pytest.param(documents(overlay), id=f"{overlay}, plain"))
        objects = rendered(overlay)
        marks = [pytest.mark.skip(reason=reason)] if objects is None else []
        params.append(pytest.param(objects or [], id=f"{overlay}, rendered", marks=marks))
    return params


every_form = pytest.mark.parametrize("objects", plain_and_rendered())


@every_form
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(objects: list[Document], version: str) -> None:
    """Strictly by the schemas of the API: no misspelt field, no wrong type."""
    for one in objects:
        if one["kind"] not in FOREIGN_KINDS:
            kubernetes_validate.validate(one, version, strict=True)


@every_form
def test_scaled_objects_have_what_keda_needs(objects: list[Document]) -> None:
    """By a schema of our own, since KEDA's kind is not among Kubernetes' schemas."""
    scaled = of_kind(objects, "ScaledObject")
    assert {one["metadata"]["name"] for one in scaled} == {"inventory", "order-writer"}
    for one in scaled:
        jsonschema.Draft202012Validator(SCALED_OBJECT).validate(one)
        assert one["spec"]["minReplicaCount"] <= one["spec"]["fallback"]["replicas"] <= one["spec"]["maxReplicaCount"]


@pytest.mark.parametrize("objects", [documents("prod"), rendered("prod") or documents("prod")], ids=["plain", "made"])
def test_somebody_is_told_of_what_needs_somebody(objects: list[Document]) -> None:
    """Each alert is about metrics that are really exported, and names a runbook that is there."""
    (rule,) = of_kind(objects, "PrometheusRule")
    jsonschema.Draft202012Validator(PROMETHEUS_RULE).validate(rule)
    (group,) = rule["spec"]["groups"]
    exported = {sample.name for family in Metrics("test").registry.collect() for sample in family.samples}
    gateway = CollectorRegistry()
    GatewayMetrics(gateway)
    exported |= {sample.name for family in gateway.collect() for sample in family.samples}
    exported.add(f"{names.DEAD_LETTERS}_total")  # has a series only once there is a letter
    alerted: set[str] = set()
    for each in group["rules"]:
        used = set(re.findall(r"stampede_\w+", each["expr"]))
        assert used
        assert used <= exported
        assert each["expr"].count("(") == each["expr"].count(")")
        assert (ROOT / each["annotations"]["runbook"]).is_file()
        alerted |= used
    assert alerted == {
        f"{names.DEAD_LETTERS}_total",
        f"{names.ORDERS_OVERRULED}_total",
        names.OUTBOX_AGE_SECONDS,
        names.PARTITIONS_STOPPED,
        names.PURCHASES_LOST,
    }


@every_form
def test_scaling_follows_the_lag_of_the_groups_that_exist(objects: list[Document]) -> None:
    """Target, group and topic are those of the code; the address is the one the pods are told."""
    expected = {
        "inventory": ("StatefulSet", inventory_group(), REQUESTS.name),
        "order-writer": ("Deployment", OrderWriter.model_fields["group"].default, DECISIONS.name),
    }
    for one in of_kind(objects, "ScaledObject"):
        name, target = one["metadata"]["name"], one["spec"]["scaleTargetRef"]
        kafka = next(each["metadata"] for each in one["spec"]["triggers"] if each["type"] == "kafka")
        assert target["name"] == name
        assert (target["kind"], kafka["consumerGroup"], kafka["topic"]) == expected[name]
        assert kafka["bootstrapServersFromEnv"] == "STAMPEDE_KAFKA"
    kinds = {one["metadata"]["name"]: one for one in objects if one["kind"] in ("Deployment", "StatefulSet")}
    assert all("replicas" not in kinds[name]["spec"] for name in expected), "applying would undo KEDA's number"


@every_form
def test_the_inventory_has_stable_names(objects: list[Document]) -> None:
    """Its pods keep their names, which are their static member ids, and start independently."""
    (inventory,) = of_kind(objects, "StatefulSet")
    assert inventory["metadata"]["name"] == "inventory"
    assert inventory["spec"]["podManagementPolicy"] == "Parallel"
    headless = next(one for one in of_kind(objects, "Service") if one["metadata"]["name"] == "inventory")
    assert headless["spec"]["clusterIP"] == "None"
    assert inventory["spec"]["serviceName"] == "inventory"


@every_form
def test_no_pod_can_become_more_than_it_is(objects: list[Document]) -> None:
    """Non-root by number, read-only root, no capabilities, seccomp, no token of the cluster, bounded memory."""
    found = pods(objects)
    assert found.keys() == SETTINGS.keys() | {"topics", "migrations"}
    for pod in found.values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 10_000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
        assert all("hostPath" not in volume for volume in pod["volumes"])
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@every_form
def test_a_gateway_is_left_alone_before_it_is_stopped(objects: list[Document]) -> None:
    """Whoever sends buyers there learns of the end a moment later than the pod; then it has its 25 s."""
    pod = pods(objects)["gateway"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause > 0
    assert pause + 25 <= pod["terminationGracePeriodSeconds"]


@every_form
def test_the_kubelet_asks_the_ops_port(objects: list[Document]) -> None:
    """Started, ready and alive are three questions, all to the port that the settings open to others than loopback."""
    for name in SETTINGS:
        (container,) = pods(objects)[name]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe, path in (("startup", "/startupz"), ("readiness", "/readyz"), ("liveness", "/livez")):
            assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "ops"}
        for overlay in OVERLAYS:
            told = config_maps(overlay)[name]
            assert told["STAMPEDE_OPS_HOST"] == "0.0.0.0"  # noqa: S104 - a pod's own address space
            for listener in ("ops", "http", "admin"):
                assert told.get(f"STAMPEDE_{listener}_PORT".upper(), None) == (
                    str(ports[listener]) if listener in ports else None
                )


@every_form
def test_disruptions_and_services_name_pods_that_exist(objects: list[Document]) -> None:
    """Every selector finds the pods of one service; every service may lose one pod at a time."""
    name_label = "app.kubernetes.io/name"
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert {one["spec"]["selector"]["matchLabels"][name_label] for one in budgets} == SETTINGS.keys()
    assert all(one["spec"]["maxUnavailable"] == 1 for one in budgets)
    for service in of_kind(objects, "Service"):
        (container,) = pods(objects)[service["spec"]["selector"][name_label]]["containers"]
        offered = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= offered


@every_form
def test_nobody_talks_to_anybody_unless_it_has_the_address(objects: list[Document]) -> None:
    """All is denied; the way to Kafka, Postgres and Redis is open to exactly those that are told where they are."""
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    maps = config_maps("prod")
    for name, port in (("kafka", 9092), ("postgres", 5432), ("redis", 6379)):
        (expression,) = policies[f"to-{name}"]["podSelector"]["matchExpressions"]
        told = {who for who, settings in maps.items() if f"STAMPEDE_{name.upper()}" in settings}
        assert set(expression["values"]) == told
        assert policies[f"to-{name}"]["egress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
        assert all(re.search(rf":{port}\b", maps[who][f"STAMPEDE_{name.upper()}"]) for who in told)
    (operators,) = policies["from-operators"]["ingress"]
    assert operators["ports"] == [{"protocol": "TCP", "port": "admin"}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gateways_reach_the_issuer_whose_keys_they_fetch(overlay: str) -> None:
    """And nothing else out there: its port only, and no private address, where metadata and other pods live."""
    maps = config_maps(overlay)
    asking = {who for who, settings in maps.items() if "STAMPEDE_JWT_JWKS_URL" in settings}
    found = {one["metadata"]["name"]: one["spec"] for one in of_kind(documents(overlay), "NetworkPolicy")}
    assert ("to-issuer" in found) == bool(asking)
    if not asking:
        return
    policy = found["to-issuer"]
    assert {policy["podSelector"]["matchLabels"]["app.kubernetes.io/name"]} == asking
    assert policy["policyTypes"] == ["Egress"]
    (way,) = policy["egress"]
    url = urlsplit(maps["gateway"]["STAMPEDE_JWT_JWKS_URL"])
    assert way["ports"] == [{"protocol": "TCP", "port": url.port or 443}]
    blocks = [peer["ipBlock"] for peer in way["to"]]
    for address in ("169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fd00::1", "fe80::1"):
        assert not any(lets_through(block, address) for block in blocks), address
    assert all(any(lets_through(block, address) for block in blocks) for address in ("192.0.2.1", "2001:db8::1"))


def lets_through(block: Document, address: str) -> bool:
    """Whether an ipBlock holds this address."""
    inside = [ip_address(address) in ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
    return inside[0] and not any(inside[1:])


def test_production_refuses_what_only_a_demonstration_may_have() -> None:
    """No believed headers, money by signed reports, three replicas of the log; development keeps believed headers on
    loopback, and its order-writer is the image with play money."""
    prod, dev = config_maps("prod"), config_maps("dev")
    assert {settings["STAMPEDE_ENV"] for name, settings in prod.items() if name in SETTINGS} == {"prod"}
    assert prod["gateway"]["STAMPEDE_AUTH"] == "jwt"
    assert prod["order-writer"]["STAMPEDE_PAYMENT"] == "webhook"
    assert dev["order-writer"]["STAMPEDE_PAYMENT"] == "simulated"
    tags = {
        overlay: {one["name"]: one["newTag"] for one in kustomization(K8S / overlay)["images"]}
        for overlay in ("base", "overlays/dev", "overlays/prod")
    }
    assert tags["overlays/dev"] == {"stampede/order-writer": f"{tags['base']['stampede/order-writer']}-demo"}
    assert not [tag for overlay in ("base", "overlays/prod") for tag in tags[overlay].values() if "demo" in tag]
    assert prod["gateway"]["STAMPEDE_WEBHOOK_SECRET_FILE"] == "/run/secrets/webhook_secret"
    assert dev["gateway"]["STAMPEDE_AUTH"] == "header"
    assert dev["gateway"]["STAMPEDE_HTTP_HOST"] == "127.0.0.1"
    (topics,) = pods(documents("prod"))["topics"]["containers"]
    assert topics["args"] == ["eventlog", "provision", "--replication", "3"]


def test_no_secret_has_a_value_in_the_repository() -> None:
    """Manifests name Secrets and keys; who runs it makes them."""
    for overlay in OVERLAYS:
        assert of_kind(documents(overlay), "Secret") == []
        for settings in config_maps(overlay).values():
            assert not any(re.search(r"://\w*:(?!\$\{)[^@]+@", value) for value in settings.values())
    for path in (ROOT / "deploy" / "k8s").rglob("*.yaml"):
        assert "secretGenerator" not in path.read_text()


def inventory_group() -> str:
    """The group the inventory joins, as its composition root says. (Importing that would import Faust.)"""
    found = re.search(
        r'^GROUP = "([\w.-]+)"$', (ROOT / "services/inventory/inventory/app.py").read_text(), re.MULTILINE
    )
    assert found is not None
    return found[1]
