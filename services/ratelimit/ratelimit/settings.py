"""The settings of the ratelimit service, read from the environment (`STAMPEDE_...`).

Nothing else in the package reads the environment.
"""

from pydantic import Field, field_validator

from ratelimit.policy import parse_policies
from service.run import ServiceSettings


class Settings(ServiceSettings):
    """Every setting of the service; see the README for what each means."""

    instance: str = "ratelimit-0"
    redis: str
    limits: str
    gateways: int = Field(default=1, ge=1, le=1000)
    admin_key_sha256: str = Field(default="", pattern=r"^([0-9a-fA-F]{64})?$")
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535)

    @field_validator("limits")
    @classmethod
    def _readable(cls, limits: str) -> str:
        parse_policies(limits)
        return limits
