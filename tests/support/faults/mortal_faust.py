"""An inventory with tasks of Faust to kill, `python -m tests.support.faults.mortal_faust`: SIGUSR2 kills $MORTAL_FAUST.

That is one task by its coroutine, or one of the `STRIKES`. Without it the coroutines of all tasks are printed then.
SIGUSR1 does to the tasks of our own what `mortal_task` does.
"""

import asyncio
import os
import runpy
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from aiokafka.errors import KafkaError

from inventory import faust_tasks
from service import tasks
from tests.support.faults.mortal_task import mortal_tasks

TASK = "MORTAL_FAUST"
_watch = faust_tasks.watch
_crashing: list[object] = []


def _crash(app: Any) -> None:
    _crashing.append(app.loop.create_task(app.consumer.crash(LookupError("a bug"))))


def _push_error(app: Any) -> None:
    thread = app.consumer._thread
    thread.thread_loop.call_soon_threadsafe(thread._consumer._coordinator._push_error_to_user, KafkaError("no"))


def _stop_thread(app: Any) -> None:
    thread = app.consumer._thread
    thread.thread_loop.call_soon_threadsafe(thread.thread_loop.stop)


def _end_stream(app: Any) -> None:
    app.agents["decide"].cancel()


STRIKES: dict[str, Callable[[Any], None]] = {
    "a bug in Faust": _crash,
    "the end of the agent's stream": _end_stream,
    "an error for the user of aiokafka": _push_error,
    "the end of the consumer's thread": _stop_thread,
}


def _strike(app: Any) -> None:
    name = os.environ.get(TASK)
    if name in STRIKES:
        STRIKES[name](app)
        return
    for loop in (app.loop, app.consumer._thread.thread_loop):
        for task in asyncio.all_tasks(loop):
            coroutine = faust_tasks.coroutine_of(task)
            if name is None:
                print(f"runs: {coroutine}", flush=True)
            elif name == coroutine:
                loop.call_soon_threadsafe(task.cancel)
                return
    print("runs: _done", flush=True)


async def watch(app: Any) -> NoReturn:
    """The shipped watch, and a signal that gives it something to see."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _strike, app)
    await _watch(app)
    raise AssertionError


if __name__ == "__main__":
    tasks.long_lived_tasks = mortal_tasks
    faust_tasks.watch = watch
    faust_tasks.LOOK_EVERY_S = 0.2
    runpy.run_module("inventory", run_name="__main__")
