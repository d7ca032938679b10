"""The settings of an order-writer, from `STAMPEDE_*` variables."""

from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from order_writer.postgres.roles import parse_role
from service.run import TracedSettings


class Settings(TracedSettings):
    """Settings of one process. Instances on one Kafka have different `instance` names: it is the group member's id."""

    instance: str = Field(default="order-writer-0", min_length=1, max_length=96)
    kafka: str = "127.0.0.1:9092"
    postgres: str = "postgresql://stampede@127.0.0.1:5432/stampede"
    postgres_pooled: bool = False  # a pooler in transaction mode is in between
    # Only `migrate` reads these two: name or name:password (percent-encoded) of a role that it makes and may do no
    # more than an order-writer, a gateway must.
    writer_role: SecretStr = SecretStr("")
    reader_role: SecretStr = SecretStr("")
    group: str = "order-writer"  # another one for a second installation beside the first
    session_timeout_s: int = Field(default=10, ge=6, le=60)  # Kafka's brokers accept no less than 6 s
    # `none`, `webhook` or an installed provider. No image for production has the default: one must be named there.
    payment: str = Field(default="simulated", min_length=1)
    sell_unpaid: bool = False  # that `none` is meant, in production
    payments_in_flight: int = Field(default=256, ge=1, le=10_000)
    payment_timeout_s: float = Field(default=10.0, gt=0, le=60)  # then a call to the provider is unknown
    payment_horizon_s: int = Field(default=86_400, ge=60)  # so long the provider knows an authorisation it has seen
    authorize_grace_ms: int = Field(default=5_000, ge=0, le=10_000)

    @field_validator("writer_role", "reader_role")
    @classmethod
    def _a_role(cls, text: SecretStr) -> SecretStr:
        if text.get_secret_value():
            parse_role(text.get_secret_value())
        return text

    @model_validator(mode="after")
    def _paid_in_production(self) -> Self:
        if self.production and self.payment == "none" and not self.sell_unpaid:
            raise ValueError(
                "STAMPEDE_PAYMENT=none sells for nothing: set another with STAMPEDE_ENV=prod, "
                "or STAMPEDE_SELL_UNPAID=true if nobody is to pay"
            )
        return self
