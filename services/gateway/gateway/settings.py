"""The settings of the gateway, read from the environment (`STAMPEDE_...`). Nothing else here reads the environment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, model_validator

from gateway.auth.client_address import parse_proxies
from gateway.auth.ids import IDENTITY_SECRET_BYTES_MIN, IdentityKey
from gateway.auth.tokens import LEEWAY_S_MAX, Algorithm, TokenAuthenticator, TokenRules, keys_of
from gateway.http.load_shedding import READS_MAX
from gateway.http.server import REQUEST_S_MAX
from ratelimit.policy import parse_policies
from service.run import TracedSettings, checked

WEBHOOK_SECRET_LENGTH_MIN = 32
LIMITS_DEFAULT = "user:token_bucket:5/s,user:sliding_window:60/min,address:token_bucket:200/s"


class Settings(TracedSettings):
    """Every setting of the gateway; see the README for what each means."""

    instance: str = "gateway-0"
    kafka: str
    postgres: SecretStr
    postgres_pooled: bool = False  # a pooler in transaction mode is in between
    redis: SecretStr
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=8081, ge=0, le=65535)
    admin_key_sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    auth: str
    jwt_algorithm: Algorithm | None = None
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_key_file: Path | None = None
    jwt_jwks_url: str = ""
    jwt_leeway_s: int = Field(default=30, ge=0, le=LEEWAY_S_MAX)
    jwt_roles_claim: str = Field(default="roles", min_length=1)
    identity_key: SecretStr | None = None
    identity_key_file: Path | None = None
    webhook_secret: SecretStr | None = None
    webhook_secret_file: Path | None = None
    limits: Annotated[str, checked(parse_policies)] = LIMITS_DEFAULT
    gateways: int = Field(default=1, ge=1, le=1000)
    trusted_proxies: Annotated[str, checked(parse_proxies)] = ""
    reads_max: int = Field(default=READS_MAX, ge=1)
    request_s_max: float = Field(default=REQUEST_S_MAX, ge=0.5, le=REQUEST_S_MAX)

    @model_validator(mode="after")
    def _one_identity_key(self) -> "Settings":
        if (self.identity_key is None) == (self.identity_key_file is None):
            raise ValueError("give one of STAMPEDE_IDENTITY_KEY and STAMPEDE_IDENTITY_KEY_FILE")
        return self

    def webhook_secrets(self) -> tuple[str, ...]:
        """The secrets that payment reports may be signed with, none when there are no such reports.

        Raises:
            ValueError: one is too short. OSError: the file cannot be read.
        """
        text = self.webhook_secret.get_secret_value() if self.webhook_secret else ""
        if self.webhook_secret_file is not None:
            text += "\n" + self.webhook_secret_file.read_text()
        secrets = tuple(secret for secret in text.replace(",", "\n").split() if secret)
        if any(len(secret) < WEBHOOK_SECRET_LENGTH_MIN for secret in secrets):
            raise ValueError(f"a secret of STAMPEDE_WEBHOOK_SECRET has at least {WEBHOOK_SECRET_LENGTH_MIN} characters")
        return secrets

    def tokens(self) -> TokenAuthenticator:
        """The verifier of tokens for `auth=jwt`.

        Raises:
            ValueError: a setting is missing or wrong. OSError: the key's file cannot be read.
        """
        if self.jwt_algorithm is None or not self.jwt_issuer or not self.jwt_audience:
            raise ValueError("it needs STAMPEDE_JWT_ALGORITHM, STAMPEDE_JWT_ISSUER and STAMPEDE_JWT_AUDIENCE")
        rules = TokenRules(
            self.jwt_algorithm, self.jwt_issuer, self.jwt_audience, self.jwt_leeway_s, self.jwt_roles_claim
        )
        keys = keys_of(
            self.jwt_algorithm, key_file=self.jwt_key_file, jwks_url=self.jwt_jwks_url, production=self.production
        )
        return TokenAuthenticator(rules, keys)

    def identity(self) -> IdentityKey:
        """The identity key, from the setting or its file.

        Raises:
            ValueError: it is too short. OSError: the file cannot be read.
        """
        if self.identity_key is not None:
            secret = self.identity_key.get_secret_value()
        else:
            assert self.identity_key_file is not None
            secret = self.identity_key_file.read_text().strip()
        try:
            return IdentityKey(secret)
        except ValueError:
            raise ValueError(
                f"STAMPEDE_IDENTITY_KEY must have at least {IDENTITY_SECRET_BYTES_MIN} bytes; "
                "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
            ) from None
