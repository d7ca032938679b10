"""What an order-writer is told by its environment (`STAMPEDE_*`)."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one process. Instances on one Kafka have different `instance` names: it is the group member's id."""

    model_config = SettingsConfigDict(env_prefix="STAMPEDE_", extra="ignore")

    env: Literal["dev", "prod"] = "dev"
    instance: str = Field(default="order-writer-0", min_length=1, max_length=96)
    kafka: str = "127.0.0.1:9092"
    postgres: str = "postgresql://stampede@127.0.0.1:5432/stampede"
    ops_host: str = "127.0.0.1"
    ops_port: int = Field(default=0, ge=0, le=65_535)
    span_file: str = ""
    trace_sample: float = Field(default=1.0, ge=0, le=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    group: str = "order-writer"  # another one for a second installation beside the first
    session_timeout_s: int = Field(default=10, ge=6, le=60)  # Kafka's brokers accept no less than 6 s
    payment: Literal["none", "simulated"] = "simulated"
    payments_in_flight: int = Field(default=256, ge=1, le=10_000)

    @model_validator(mode="after")
    def _no_play_money_in_production(self) -> Self:
        if self.env == "prod" and self.payment == "simulated":
            raise ValueError("STAMPEDE_PAYMENT=simulated sells for play money: set another with STAMPEDE_ENV=prod")
        return self
