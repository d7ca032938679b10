"""A service with tasks to kill, `python -m tests.support.faults.mortal_task SERVICE`: SIGUSR1 cancels $MORTAL_TASK.

Without it the names of all tasks are printed then.
"""

import asyncio
import contextlib
import os
import runpy
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from service import tasks

TASK = "MORTAL_TASK"
_long_lived_tasks = tasks.long_lived_tasks


@contextlib.asynccontextmanager
async def mortal_tasks() -> AsyncIterator[tasks.Start]:
    """The shipped tasks, and a signal that ends one of them."""
    names: list[str] = []

    def strike() -> None:
        if TASK not in os.environ:
            print("\n".join(names), flush=True)
        for task in asyncio.all_tasks():
            if task.get_name() == os.environ.get(TASK):
                task.cancel()

    async with _long_lived_tasks() as start:

        def noted(name: str, work: Coroutine[Any, Any, None]) -> None:
            names.append(name)
            start(name, work)

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, strike)
        yield noted


if __name__ == "__main__":
    tasks.long_lived_tasks = mortal_tasks
    runpy.run_module(sys.argv[1], run_name="__main__")
