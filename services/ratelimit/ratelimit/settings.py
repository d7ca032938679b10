"""The settings of the ratelimit service, read from the environment (`STAMPEDE_...`).

Nothing else in the package reads the environment.
"""

from typing import Annotated

from pydantic import Field

from ratelimit.policy import parse_policies
from service.run import ServiceSettings, checked


class Settings(ServiceSettings):
    """Every setting of the service; see the README for what each means."""

    instance: str = "ratelimit-0"
    redis: str
    limits: Annotated[str, checked(parse_policies)]
    gateways: int = Field(default=1, ge=1, le=1000)
    admin_key_sha256: str = Field(default="", pattern=r"^([0-9a-fA-F]{64})?$")
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535)
