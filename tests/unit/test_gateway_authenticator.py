"""Who may vouch for a buyer, and where; which settings are taken."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from gateway.auth.authenticator import AuthenticationRefused, authenticator
from gateway.auth.ids import Subject
from gateway.http import problems
from gateway.settings import Settings
from service.problem_details import Problem


class Given(Settings):
    """The gateway's settings from arguments alone: whatever stands in the environment of the test run is not read."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments."""
        return (init_settings,)


REQUIRED = {
    "kafka": "k:1",
    "postgres": "postgresql://x",
    "redis": "redis://x",
    "auth": "header",
    "admin_key_sha256": "0" * 64,
}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])  # noqa: S104 - refused is the point
def test_believing_a_header_is_refused_off_loopback(host: str) -> None:
    """Wherever others could reach it."""
    with pytest.raises(AuthenticationRefused, match="loopback"):
        authenticator("header", production=False, host=host)


def test_believing_a_header_is_refused_in_production() -> None:
    """Even on loopback: a proxy may stand in front."""
    with pytest.raises(AuthenticationRefused, match="prod"):
        authenticator("header", production=True, host="127.0.0.1")


@pytest.mark.parametrize("mode", ["jwt", "none", ""])
def test_a_mode_that_does_not_exist_is_refused_with_a_sentence(mode: str) -> None:
    """There is no default that lets everybody in."""
    with pytest.raises(AuthenticationRefused, match="STAMPEDE_AUTH"):
        authenticator(mode, production=False, host="127.0.0.1")


@pytest.mark.parametrize("value", [None, b"", b"a b", b"\xc3\xa9", b"x" * 129, b"a\x00"], ids=ascii)
async def test_only_one_plain_name_is_believed(value: bytes | None) -> None:
    """Missing, odd or doubled names are nobody."""
    who = authenticator("header", production=False, host="::1")
    answer = await who.subject({b"x-user-id": value})
    assert isinstance(answer, Problem)
    assert answer.kind is problems.UNAUTHENTICATED
    assert await who.subject({b"x-user-id": b"ann@example.org"}) == Subject("header", "ann@example.org")


def test_the_identity_key_comes_from_one_place(tmp_path: Path) -> None:
    """A setting or a file, not both, not none; and it must be long enough."""
    file = tmp_path / "key"
    file.write_text("k" * 40 + "\n")
    from_file = Given.model_validate(REQUIRED | {"identity_key_file": str(file)})
    from_text = Given.model_validate(REQUIRED | {"identity_key": "k" * 40})
    assert from_file.identity().fingerprint == from_text.identity().fingerprint
    for wrong in ({}, {"identity_key": "k" * 40, "identity_key_file": str(file)}):
        with pytest.raises(ValidationError, match="IDENTITY_KEY"):
            Given.model_validate(REQUIRED | wrong)
    with pytest.raises(ValueError, match="32 bytes"):
        Given.model_validate(REQUIRED | {"identity_key": "short"}).identity()


def test_limits_are_read_at_the_start() -> None:
    """A misspelt limit is found before the first buyer."""
    with pytest.raises(ValidationError, match="bucket_of_tokens"):
        Given.model_validate(REQUIRED | {"identity_key": "k" * 40, "limits": "user:bucket_of_tokens:5/s"})
