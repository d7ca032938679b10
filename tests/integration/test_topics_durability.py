"""Topics that can lose what they acknowledged: refused in production, warned of elsewhere, corrected by `provision`."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType

from eventlog.__main__ import provision
from eventlog.kafka import TopicsWrong, admin_client, topic_ids, weaknesses
from stampede_schemas.topics import DECISIONS
from tests.support.builders.gateway import IDENTITY_KEY
from tests.support.processes.inventory import worker
from tests.support.processes.servers import configure
from tests.support.processes.stack import components

UNCLEAN = "unclean.leader.election.enable"


def configured(kafka: str, key: str) -> str | None:
    """What holds for `decisions`."""
    resource = ConfigResource(ResourceType.TOPIC, DECISIONS.name)
    value: str | None = admin_client(kafka).describe_configs([resource])[resource].result(30)[key].value
    return value


def test_a_cluster_for_production_is_told_from_any_other() -> None:
    """Three replicas, two of which acknowledge, and no leader without all that was acknowledged."""

    def found(replicas: int, in_sync: str, unclean: str) -> list[str]:
        partitions: Any = SimpleNamespace(partitions=[SimpleNamespace(replicas=[None] * replicas)])
        config: Any = {"min.insync.replicas": SimpleNamespace(value=in_sync), UNCLEAN: SimpleNamespace(value=unclean)}
        return list(weaknesses(partitions, config))

    assert found(3, "2", "false") == []
    assert found(5, "3", "false") == []
    assert found(2, "2", "false") == ["fewer than 3 replicas"]
    assert found(3, "1", "false") == ["min.insync.replicas is below 2"]
    assert found(3, "2", "true") == ["unclean.leader.election.enable is not false"]


def ended(module: str, folder: Path, **env: str) -> str:
    """What a service of production said before it ended by itself."""
    running = subprocess.run(
        [sys.executable, "-m", module],
        env=os.environ | {"STAMPEDE_ENV": "prod", "STAMPEDE_DATA_DIR": str(folder)} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert running.returncode == 1, running.stderr
    return running.stderr


def test_every_service_refuses_them_in_production_and_warns_elsewhere(tmp_path: Path) -> None:
    """One broker is what a developer has: it is used with STAMPEDE_ENV=dev only, and each start says so."""
    (tmp_path / "secret").write_text("s" * 32)
    token = {"ALGORITHM": "HS256", "ISSUER": "i", "AUDIENCE": "a", "KEY_FILE": str(tmp_path / "secret")}
    with components() as alone:
        provision(alone.kafka, 1)
        configure(alone.kafka, DECISIONS, UNCLEAN, "true")
        with worker(alone.kafka, tmp_path) as running:
            running.await_ready()
        said = (tmp_path / "inventory-0.log").read_text()
        assert "Kafka can lose what it acknowledged; for demonstrations only: fewer than 3 replicas" in said
        assert "unclean.leader.election.enable is not false (stampede.decisions)" in said
        places = {
            "STAMPEDE_KAFKA": alone.kafka, "STAMPEDE_POSTGRES": alone.postgres, "STAMPEDE_REDIS": alone.redis,
            "STAMPEDE_AUTH": "jwt", **{f"STAMPEDE_JWT_{name}": value for name, value in token.items()},
            "STAMPEDE_IDENTITY_KEY": IDENTITY_KEY, "STAMPEDE_ADMIN_KEY_SHA256": "0" * 64,
            "STAMPEDE_HTTP_PORT": "0", "STAMPEDE_ADMIN_PORT": "0",
            "STAMPEDE_PAYMENT": "none", "STAMPEDE_SELL_UNPAID": "true",
        }  # fmt: skip
        for module in ("inventory", "order_writer", "gateway"):
            said = ended(module, tmp_path, **places)
            assert "Kafka can lose what it acknowledged: fewer than 3 replicas (every topic); " in said, module
            assert "`python -m eventlog provision --replication 3`" in said


def test_provision_corrects_them_or_says_that_it_cannot() -> None:
    """It sets what a configuration can set; a topic with too few replicas is left as it is, and can be written to."""
    with components() as alone:
        provision(alone.kafka, 1)
        configure(alone.kafka, DECISIONS, UNCLEAN, "true")
        configure(alone.kafka, DECISIONS, "min.insync.replicas", "2")
        provision(alone.kafka, 1)
        assert configured(alone.kafka, UNCLEAN) == "false"
        assert configured(alone.kafka, "min.insync.replicas") == "1"
        with pytest.raises(TopicsWrong, match=r"has 1 replicas, not 3.*Nothing was changed"):
            provision(alone.kafka, 3)
        assert configured(alone.kafka, "min.insync.replicas") == "1"
        assert DECISIONS.name in topic_ids(alone.kafka)
