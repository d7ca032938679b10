"""What the operator may set, from `STAMPEDE_*` variables."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one inventory worker."""

    model_config = SettingsConfigDict(env_prefix="STAMPEDE_")

    env: Literal["dev", "prod"] = "dev"
    instance: str = Field(default="inventory-0", description="its name, and its static member id in the Kafka group")
    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers, host:port, comma-separated")
    session_timeout_s: float = Field(default=10.0, ge=6, le=60, description="after this a silent worker is replaced")
    snapshot_decisions_min: int = Field(default=50_000, ge=1, description="decisions made before a snapshot is written")
    data_dir: Path = Field(default=Path(".stack/inventory"), description="Faust keeps its own small files here")
    ops_host: str = "127.0.0.1"
    ops_port: int = Field(default=0, ge=0, le=65_535, description="health, metrics, /state; 0 takes a free port")
    span_file: str = Field(default="", description="where spans go, one JSON object a line; empty: nowhere")
    trace_sample: float = Field(default=1.0, ge=0, le=1)
    log_level: str = "INFO"
