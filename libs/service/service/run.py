"""Settings from the environment, JSON logs, signals, and an end with one sentence.

Exit codes: 0 after an orderly stop, 1 when the service cannot run, 2 when a setting is wrong and a restart cannot help.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.tasks import TaskEnded, first_of
from telemetry.logs import configure_logs

ENDING = (signal.SIGTERM, signal.SIGINT)


class ServiceSettings(BaseSettings):
    """The settings of every service, from variables named `STAMPEDE_*`."""

    model_config = SettingsConfigDict(env_prefix="STAMPEDE_", frozen=True, extra="ignore")

    env: Literal["dev", "prod"] = "dev"
    instance: str
    ops_host: str = "127.0.0.1"
    ops_port: int = Field(default=0, ge=0, le=65_535, description="health and metrics; 0 takes a free port")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def production(self) -> bool:
        """Whether what is fit for demonstrations only must be refused."""
        return self.env == "prod"


class TracedSettings(ServiceSettings):
    """The same with traces."""

    span_file: str = Field(default="", description="where spans go, one JSON object a line; empty: nowhere")
    trace_sample: float = Field(default=1.0, ge=0, le=1)


def checked(parse: Callable[[str], object]) -> AfterValidator:
    """For a setting whose text `parse` must be able to read; it raises ValueError otherwise."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


_Settings = TypeVar("_Settings", bound=ServiceSettings)


def settings_of(service: str, kind: type[_Settings]) -> _Settings:
    """The settings of this process; a wrong one ends it with one sentence."""
    try:
        return kind()  # type: ignore[call-arg]  # filled from the environment
    except ValidationError as error:
        _end(service, "; ".join(map(_wrong, error.errors())), 2)


def run(
    service: str,
    settings: ServiceSettings,
    serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    *expected: type[BaseException],
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Serve until `serve` returns; SIGTERM and SIGINT set its event. `expected` errors end it with one sentence.

    Another signal while the interpreter ends changes nothing: the exit code of an orderly end is 0.
    """
    configure_logs(service, settings.instance, settings.log_level)

    async def until_signalled() -> None:
        stopping = asyncio.Event()
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await serve(stopping)

    with one_sentence(service, TaskEnded, *expected), asyncio.Runner(loop_factory=loop) as runner:
        runner.run(until_signalled())
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def one_sentence(service: str, *expected: type[BaseException]) -> Iterator[None]:
    """End the process with exit code 1 and one sentence on an `expected` error, or on a group of nothing else."""
    error: BaseException | None = None
    try:
        yield
    except* expected as group:
        error = first_of(group)
    if error is not None:
        cause = error.args[0] if error.args else error
        _end(service, cause.str() if hasattr(cause, "str") else str(error), 1)  # Kafka's errors hold an object


def _wrong(error: Any) -> str:
    name = "_".join(["STAMPEDE", *map(str, error["loc"])]).upper()
    sentence = error["msg"].removeprefix("Value error, ")
    return f"{name}: {sentence}" if error["loc"] else sentence


def _end(service: str, sentence: str, code: int) -> NoReturn:
    print(f"{service}: {sentence}", file=sys.stderr)
    sys.exit(code)
