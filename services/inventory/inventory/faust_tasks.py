"""Notices that a task of Faust has ended: each of them can do so unseen, and the worker would sit there without work.

Faust crashes with a task that raises, but nothing waits for that here; one that is cancelled or returns is only logged
(mode-streaming), or not even that (aiokafka). Private parts of the versions that we pin; the test that kills each of
these tasks notices when they go.
"""

import asyncio
from collections import Counter
from typing import Any, NoReturn

from service.tasks import TaskEnded

LOOK_EVERY_S = 1.0
MISSED_LOOKS_MAX = 3  # Faust itself starts an agent again that was cancelled
# By the coroutine that each runs; some run in several tasks, in the loops of two threads.
NAMES = frozenset(
    {
        "AIOKafkaClient._md_synchronizer",
        "Agent._execute_actor",
        "Conductor._subscriber",
        "Consumer._commit_handler",
        "Consumer._commit_livelock_detector",
        "Fetcher._fetch_requests_routine",
        "Fetcher._fetcher",
        "GroupCoordinator._coordination_routine",
        "MethodQueueWorker._method_queue_do_work",
        "Monitor._sampler",
        "ProducerBuffer._handle_pending",
        "Recovery._publish_stats",
        "Recovery._restart_recovery",
        "Recovery._slurp_changelogs",
        "Sender._sender_routine",
        "ServiceThread._keepalive2",
        "ServiceThread._thread_keepalive",
        "SupervisorStrategy._supervisor",
    }
)


async def watch(app: Any) -> NoReturn:
    """Look each second, once `app` is started. A task that was seen running has to go on running.

    Raises:
        TaskEnded: one of the tasks has ended, or Faust or its group coordinator has given up.
    """
    most, missed = Counter[str](), Counter[str]()
    before: Counter[str] | None = None
    while True:
        if app.crashed:
            raise TaskEnded(f"Faust has crashed: {app.crash_reason!r}")
        thread = app.consumer._thread
        coordinator = thread._consumer._coordinator
        if (error := coordinator._pending_exception) is not None:
            # It waits for Faust to ask for it, which Faust never does.
            raise TaskEnded(f"Faust's consumer cannot stay in its group: {error!r}")
        running = Counter(name for loop in (app.loop, thread.thread_loop) for name in _running(loop))
        # After the first look, one that is being replaced may be seen beside its successor, once.
        most |= running if before is None else running & before
        before = running
        ended = [name for name in most if running[name] < most[name]] + _left_behind(coordinator)
        missed = Counter({name: missed[name] + 1 for name in ended})
        for name, looks in missed.items():
            if looks > MISSED_LOOKS_MAX:
                raise TaskEnded(f"Faust's task {name} has ended")
        await asyncio.sleep(LOOK_EVERY_S)


def _running(loop: asyncio.AbstractEventLoop) -> list[str]:
    """The coroutines of `NAMES` that run in this loop; nothing runs in one whose thread is dead."""
    names = map(coroutine_of, asyncio.all_tasks(loop) if loop.is_running() else ())
    return [name for name in names if name in NAMES]


def _left_behind(coordinator: Any) -> list[str]:
    """Helpers of the group coordinator that have ended; unless it joins the group again, it goes on without them."""
    subscription = coordinator._subscription.subscription
    if subscription is None or coordinator.need_rejoin(subscription):
        return []
    helpers = coordinator._heartbeat_task, coordinator._commit_refresh_task
    return [coroutine_of(task) for task in helpers if task and task.done()]


def coroutine_of(task: Any) -> str:
    """The name of what runs in a task, also within mode's wrapper."""
    return getattr(getattr(task, "__wrapped__", None) or task.get_coro(), "__qualname__", "")
