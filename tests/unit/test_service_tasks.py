"""The first long-lived task that ends unasked ends its service, whatever ended it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.tasks import TaskEnded, in_thread, long_lived_tasks


async def forever() -> None:
    """A task as it should be."""
    await asyncio.Event().wait()


async def returns() -> None:
    """A task that thinks it is done."""
    await asyncio.sleep(0)


async def fails() -> None:
    """A task with a bug."""
    await asyncio.sleep(0)
    raise LookupError("a bug")


async def cancels_itself() -> None:
    """A task that something has cancelled."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


ENDS = [(returns, TaskEnded), (cancels_itself, TaskEnded), (fails, LookupError)]


@pytest.mark.parametrize(("ends", "expected"), ENDS)
async def test_the_service_ends_with_the_first_task_that_ends(
    ends: Callable[[], Coroutine[Any, Any, None]], expected: type[Exception]
) -> None:
    """It is woken from what it waits for, its clean-up runs, and the others are cancelled."""
    cleaned = False
    others: list[asyncio.Task[None]] = []

    async def serve() -> None:
        nonlocal cleaned
        async with long_lived_tasks() as start:
            start("stay", forever())
            start("end", ends())
            others.extend(task for task in asyncio.all_tasks() if task.get_name() == "stay")
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                cleaned = True

    async with asyncio.timeout(5):
        with pytest.raises(expected) as raised:
            await serve()
    assert cleaned
    assert [task.done() for task in others] == [True]
    if expected is TaskEnded:
        assert "end has ended" in str(raised.value)


async def test_an_orderly_end_cancels_them_and_raises_nothing() -> None:
    """Tasks that end because they were asked to have done nothing wrong."""
    async with long_lived_tasks() as start:
        start("stay", forever())
        await asyncio.sleep(0)


async def test_tasks_that_end_by_themselves_are_waited_for() -> None:
    """They finish what they have in hand; nothing is cancelled, and nothing is raised."""
    stopping, finished = asyncio.Event(), list[int]()

    async def until_stopped() -> None:
        await stopping.wait()
        await asyncio.sleep(0.01)
        finished.append(1)

    async with asyncio.timeout(5), long_lived_tasks(stopping) as start:
        start("stay", until_stopped())
        start("stay too", until_stopped())
        asyncio.get_running_loop().call_later(0.01, stopping.set)
    assert finished == [1, 1]


@pytest.mark.parametrize(("ends", "expected"), ENDS)
async def test_one_of_them_that_ends_before_ends_the_service(
    ends: Callable[[], Coroutine[Any, Any, None]], expected: type[Exception]
) -> None:
    """Also one that returns, as it would later: only then nobody asked it to."""

    async def serve() -> None:
        async with long_lived_tasks(asyncio.Event()) as start:
            start("stay", forever())
            start("end", ends())

    with pytest.raises(expected):
        await asyncio.wait_for(serve(), 5)


async def test_an_error_of_the_service_is_raised_as_it_is() -> None:
    """Not as a group: callers catch it by its type."""

    async def serve() -> None:
        async with long_lived_tasks() as start:
            start("stay", forever())
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await serve()


async def test_a_thread_is_stopped_and_waited_for() -> None:
    """The caller may close afterwards all that the thread used."""
    stopping, ended, began = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        stopping.wait(5)
        ended.set()

    task = asyncio.create_task(in_thread(work, stopping.set))
    await asyncio.to_thread(began.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_an_error_of_a_thread_is_raised() -> None:
    """At once, in the task that waits for it."""

    def work() -> None:
        raise LookupError("a bug")

    with pytest.raises(LookupError):
        await in_thread(work, lambda: None)
