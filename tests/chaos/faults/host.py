"""What surrounds a process: a disk that is full, a clock that is wrong."""

import time
from functools import partial
from random import Random

import psutil

from telemetry.names import SPANS_DROPPED
from tests.chaos.arena import Arena
from tests.chaos.faults.fault import Fault

HOUR_S = 3600.0
DIES_S_MAX = 30.0
SERVICES = ("gateway", "inventory", "order-writer")


def _full(role: str, arena: Arena, _dice: Random, seconds: float) -> bool:
    """No file of its processes may grow: logs, spans, whatever they keep. They live on."""
    names = arena.names(role)

    def refused() -> float:
        return sum(arena.metric(name, SPANS_DROPPED) for name in names)

    before = refused()
    with arena.full_disk(names) as pids:
        time.sleep(seconds)
        lost = refused() - before
    died = [name for name, pid in zip(names, pids, strict=True) if arena.stack.status()[name]["pid"] != pid]
    arena.tell(f"{role} could not write {lost:.0f} spans; died of it: {died or 'none'}")
    return lost > 0


def _broker_full(arena: Arena, _dice: Random, _seconds: float) -> bool:
    """A broker that cannot append gives up its log, and with its only log itself; its successor finds room."""
    with arena.full_disk(["kafka"]) as (pid,):
        died = arena.wait_for(lambda: not psutil.pid_exists(pid), DIES_S_MAX)
    arena.tell(f"kafka {'gave up' if died else 'lived on, unable to append'}")
    return died


def _clock(role: str, by_s: float, arena: Arena, dice: Random, seconds: float) -> bool:
    """From a restart to the next restart."""
    name = dice.choice(arena.names(role))
    with arena.wrong_clock(name, by_s) as runs_by_it:
        time.sleep(seconds)
    return runs_by_it


def _clocks() -> dict[str, Fault]:
    return {
        f"{role} an hour {'ahead' if by_s > 0 else 'behind'}": Fault(
            "one of two runs by a wrong clock", partial(_clock, role, by_s), role, (4.0, 6.0)
        )
        for role in SERVICES
        for by_s in (HOUR_S, -HOUR_S)
    }


FAULTS = {
    **{
        f"{role} with a full disk": Fault("no file of its processes can grow", partial(_full, role), role, (4.0, 6.0))
        for role in SERVICES
    },
    "kafka with a full disk": Fault("the broker's files cannot grow", _broker_full, "kafka"),
    **_clocks(),
}
