"""`python -m eventlog provision`: make the topics of the registry, or correct their configuration. Safe to repeat."""

import argparse
import os
import sys
import time

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from eventlog.kafka import IN_SYNC_MIN, REPLICAS_MIN, TopicsWrong, admin_client, replicas, topic_ids
from stampede_schemas.topics import TOPICS

TIMEOUT_S = 30.0
SETTLE_S_MAX = 10.0
SETTLE_POLL_S = 0.1


def provision(kafka: str, replication: int) -> dict[str, str]:
    """Make what is missing, set every topic's configuration, check the result. Returns Kafka's topic ids by name.

    Raises:
        TopicsWrong: a topic differs in what no configuration corrects. KafkaException: Kafka refused.
    """
    admin = admin_client(kafka)
    durable = replication >= REPLICAS_MIN
    in_sync = str(IN_SYNC_MIN if durable else 1)
    durability = {"min.insync.replicas": in_sync, "unclean.leader.election.enable": "false"}
    wanted = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=replication, config=t.config | durability)
        for t in TOPICS
    ]
    found: list[str] = []
    creating = admin.create_topics(wanted, operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S)
    for name, future in creating.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            found.append(name)
    _check_replicas(kafka, found, replication)
    changes = [
        ConfigResource(
            ResourceType.TOPIC,
            t.name,
            incremental_configs=[
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                for key, value in (t.config | durability).items()
            ],
        )
        for t in TOPICS
    ]
    for future in admin.incremental_alter_configs(changes, request_timeout=TIMEOUT_S).values():
        future.result()
    return _settled(kafka, production=True if durable else None)


def _check_replicas(kafka: str, names: list[str], wanted: int) -> None:
    """Raise TopicsWrong if a topic has fewer: with `min.insync.replicas` above that, nothing could be appended."""
    described = admin_client(kafka).describe_topics(TopicCollection(names), request_timeout=TIMEOUT_S)
    for name in names:
        if (has := replicas(described[name].result())) < wanted:
            raise TopicsWrong(
                f"topic {name} has {has} replicas, not {wanted}: add brokers with `kafka-reassign-partitions.sh`, "
                "then provision again. Nothing was changed."
            )


def _settled(kafka: str, *, production: bool | None) -> dict[str, str]:
    """The ids, once the broker shows every new topic with its leaders: services may start right after this."""
    deadline = time.monotonic() + SETTLE_S_MAX
    while True:
        try:
            return topic_ids(kafka, production=production)
        except TopicsWrong:
            if time.monotonic() > deadline:
                raise
            time.sleep(SETTLE_POLL_S)


def main() -> int:
    """Command line; exit 0 when every topic is as the registry says."""
    parser = argparse.ArgumentParser(prog="python -m eventlog", description=__doc__)
    parser.add_argument("command", choices=["provision"])
    parser.add_argument("--kafka", default=os.environ.get("STAMPEDE_KAFKA", "127.0.0.1:9092"), help="bootstrap servers")
    parser.add_argument("--replication", type=int, default=1, help="replicas of each topic; 3 in production")
    arguments = parser.parse_args()
    try:
        ids = provision(arguments.kafka, arguments.replication)
    except TopicsWrong as error:
        print(error, file=sys.stderr)
        return 1
    except KafkaException as error:
        print(f"Kafka at {arguments.kafka} refused: {error.args[0].str()}", file=sys.stderr)
        return 1
    for name, topic_id in sorted(ids.items()):
        print(f"{name}  {topic_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
