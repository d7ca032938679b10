"""Long-lived tasks of a service: the first that ends unasked ends the service, so that none dies unseen."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

Start = Callable[[str, Coroutine[Any, Any, None]], None]


class TaskEnded(Exception):
    """A task that had to run for as long as its service has ended; the message names it."""


@contextlib.asynccontextmanager
async def long_lived_tasks(stopping: asyncio.Event | None = None) -> AsyncIterator[Start]:
    """Gives a function that starts a task under a name. The tasks are cancelled when the block ends.

    The first task that fails, returns or is cancelled cancels the block.

    Args:
        stopping: given, the tasks end by themselves once it is set: it is waited for at the end of the block, and then
            for them.

    Raises:
        TaskEnded: a task returned or was cancelled. Otherwise the exception of the first task that failed, or that of
            the block.
    """
    ending = False

    async def endless(name: str, work: Coroutine[Any, Any, None]) -> None:
        nonlocal ending
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await work
            if not ending and not (stopping and stopping.is_set()):
                raise TaskEnded(f"the task that has to {name} has ended")
        finally:
            ending = True

    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:

            def start(name: str, work: Coroutine[Any, Any, None]) -> None:
                task = group.create_task(endless(name, work), name=name)
                task.add_done_callback(lambda _: work.close())  # a task that was cancelled first has never begun it
                tasks.append(task)

            try:
                yield start
                if stopping:
                    await stopping.wait()
            finally:
                ending = True
                if not (stopping and stopping.is_set()):
                    for task in tasks:
                        task.cancel()
    except BaseExceptionGroup as failures:
        raise first_of(failures) from None


def first_of(failure: BaseException) -> BaseException:
    """The first failure of a group, however deep; another failure as it is."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


async def in_thread(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `work` in a thread; when cancelled, call `stop`, which makes it return, and wait for it."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(thread)
    finally:
        stop()
        await asyncio.wait({thread})
