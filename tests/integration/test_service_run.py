"""How a service starts and ends: exit codes, one sentence, signals."""

import subprocess
import sys

PROGRAM = """
import asyncio, atexit, os, signal
from service.run import ServiceSettings, run, settings_of

class Settings(ServiceSettings):
    instance: str = "one"
    limit: int = 1

async def serve(stopping):
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stopping.wait(), 10)
    {then}

settings = settings_of("tester", Settings)
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
run("tester", settings, serve, {expected})
"""


def ended(then: str = "", expected: str = "OSError", **env: str) -> tuple[int, str]:
    """Exit code and stderr of a service that is told to stop, and told again while it ends."""
    program = PROGRAM.format(then=then, expected=expected)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stderr


def test_a_second_signal_does_not_change_an_orderly_end() -> None:
    """It came when the loop was closed already, and killed a process that had answered everything."""
    assert ended() == (0, "")


def test_what_is_expected_is_one_sentence() -> None:
    """Alone, and as a group of nothing else; the first one is told."""
    assert ended("raise OSError('no port')", "OSError")[1] == "tester: no port\n"
    group = "raise ExceptionGroup('two', [ValueError('first'), OSError('second')])"
    assert ended(group, "OSError, ValueError")[1] == "tester: first\n"


def test_what_is_not_expected_is_told_whole() -> None:
    """Also beside what is expected: a bug must not hide behind an outage."""
    group = "raise ExceptionGroup('two', [ValueError('a bug'), OSError('an outage')])"
    assert "Traceback" in ended(group, "OSError")[1]
    assert "a bug" in ended(group, "OSError")[1]


def test_a_wrong_setting_is_named() -> None:
    """With the variable, before anything begins, and with an exit code of its own."""
    code, said = ended(STAMPEDE_LIMIT="many")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("tester: STAMPEDE_LIMIT: ")
