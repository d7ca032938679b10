"""The settings of an inventory worker, from `STAMPEDE_*` variables."""

from pathlib import Path

from pydantic import Field

from service.run import TracedSettings


class Settings(TracedSettings):
    """Settings of one inventory worker."""

    instance: str = Field(default="inventory-0", description="its name, and its static member id in the Kafka group")
    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers, host:port, comma-separated")
    session_timeout_s: float = Field(default=10.0, ge=6, le=60, description="after this a silent worker is replaced")
    snapshot_decisions_min: int = Field(default=50_000, ge=1, description="decisions made before a snapshot is written")
    data_dir: Path = Field(default=Path(".stack/inventory"), description="Faust keeps its own small files here")
