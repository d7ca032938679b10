"""The settings of the ratelimit service, read from the environment (`STAMPEDE_...`).

Nothing else in the package reads the environment.
"""

from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ratelimit.policy import parse_policies


class Settings(BaseSettings):
    """Every setting of the service; see the README for what each means."""

    model_config = SettingsConfigDict(env_prefix="STAMPEDE_", frozen=True)

    env: Literal["dev", "prod"] = "dev"
    instance: str = "ratelimit-0"
    redis: str
    limits: str
    gateways: int = Field(default=1, ge=1, le=1000)
    admin_key_sha256: str = Field(default="", pattern=r"^([0-9a-fA-F]{64})?$")
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535)
    ops_host: str = "127.0.0.1"
    ops_port: int = Field(default=0, ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("limits")
    @classmethod
    def _readable(cls, limits: str) -> str:
        parse_policies(limits)
        return limits
