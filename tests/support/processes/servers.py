"""What a test does to Postgres and to Kafka beside the services: a statement, a topic's setting."""

import asyncpg
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from eventlog.kafka import admin_client
from stampede_schemas.topics import Topic


async def fetch(dsn: str, query: str, *arguments: object) -> list[asyncpg.Record]:
    """The rows of one statement, on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return list(await connection.fetch(query, *arguments))
    finally:
        await connection.close()


def configure(kafka: str, topic: Topic, key: str, value: str) -> None:
    """Change a topic's setting at the broker."""
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic.name, incremental_configs=[entry])
    admin_client(kafka).incremental_alter_configs([resource])[resource].result(30)
