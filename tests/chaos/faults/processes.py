"""Processes that die, freeze, come back, and fight for one place."""

import signal
import time
from functools import partial
from random import Random

from tests.chaos.arena import Arena
from tests.chaos.faults.fault import Fault
from tests.chaos.plan import ODD_PARTITION


def _kill(role: str, arena: Arena, dice: Random, _seconds: float) -> bool:
    arena.kill(dice.choice(arena.names(role)))
    return True


def restart(role: str, arena: Arena, dice: Random, _seconds: float) -> bool:
    """SIGTERM to one of them."""
    arena.kill(dice.choice(arena.names(role)), clean=True)
    return True


def crash(role: str, point: str, arena: Arena, dice: Random, _seconds: float) -> bool:
    """Whoever passes the point dies there."""
    return arena.die_at(role, point, dice.randrange(8))


def _crash_loading(arena: Arena, dice: Random, _seconds: float) -> bool:
    victim = dice.choice(arena.names("inventory"))
    return arena.die_at("inventory", "loading", dice.randrange(40), lambda: arena.kill(victim))


def _crash_rebalancing(arena: Arena, dice: Random, _seconds: float) -> bool:
    return arena.die_at("inventory", "rebalancing", dice.randrange(2), lambda: arena.join("inventory-guest"))


def _crash_in_snapshot(arena: Arena, dice: Random, _seconds: float) -> bool:
    return arena.die_at("inventory", "snapshot half written", 0)


def freeze(role: str, arena: Arena, dice: Random, seconds: float) -> bool:
    """SIGSTOP to one of them, and SIGCONT."""
    with arena.frozen(dice.choice(arena.names(role))):
        time.sleep(seconds)
    return True


def _freeze_at(role: str, point: str, arena: Arena, dice: Random, seconds: float) -> bool:
    with arena.frozen_at(dice.choice(arena.names(role)), point) as there:
        time.sleep(seconds)
    return there


def _two_groups(arena: Arena, dice: Random, seconds: float) -> bool:
    """It is started again whenever it gives up; half of the time it is of another version."""
    arena.other_rules("inventory-rogue", wanted=dice.random() < 0.5)
    return _insist(arena, seconds, "inventory-rogue", group="inventory-rogue")


def _same_name(arena: Arena, dice: Random, seconds: float) -> bool:
    return _insist(arena, seconds, dice.choice(arena.names("inventory")))


def _insist(arena: Arena, seconds: float, instance: str, group: str | None = None) -> bool:
    deadline = time.monotonic() + seconds
    outsider = arena.join(instance, group)
    while time.monotonic() < deadline:
        if not outsider.running:
            outsider = arena.join(instance, group)
        time.sleep(0.2)
    if outsider.running:
        outsider.end()
    return True


STORM_EVERY_S = 3.0
GUESTS_MAX = 2


def _storm(arena: Arena, dice: Random, seconds: float) -> bool:
    guests = [arena.join("inventory-storm-0")]
    deadline = time.monotonic() + seconds
    number = 1
    while time.monotonic() + STORM_EVERY_S <= deadline:
        time.sleep(STORM_EVERY_S)
        guests = [guest for guest in guests if guest.running]
        what = dice.choice(["join", "leave", "kill", "kill one of ours"])
        if what == "join" or (what != "kill one of ours" and not guests):
            if len(guests) < GUESTS_MAX:
                guests.append(arena.join(f"inventory-storm-{number}"))
                number += 1
        elif what == "kill one of ours":
            arena.kill(dice.choice(arena.names("inventory")))
        else:
            guest = guests.pop(dice.randrange(len(guests)))
            arena.tell(f"{guest.name} {'leaves' if what == 'leave' else 'is killed'}")
            guest.end(signal.SIGTERM if what == "leave" else signal.SIGKILL)
    for guest in guests:
        if guest.running:
            guest.end()
    return True


def _rolling(arena: Arena, _dice: Random, seconds: float) -> bool:
    """The first to be upgraded owns nothing of the product; the frozen one does, and thaws with the old rules."""
    old = arena.owner(ODD_PARTITION)
    other = next(name for name in arena.names("inventory") if name != old)
    arena.other_rules(other, wanted=True)
    arena.kill(other, clean=True)
    with arena.frozen_at(old, "decided"):
        time.sleep(seconds)
    time.sleep(STORM_EVERY_S)
    arena.other_rules(old, wanted=True)
    arena.kill(old, clean=True)
    return True


KILLED = ("gateway", "inventory", "order-writer", "ratelimit", "kafka", "postgres", "redis")
CRASHES = ("fetched", "decided", "produced", "reported", "acked")
WRITER_CRASHES = (
    "before COMMIT",
    "after COMMIT, before the offset",
    "before the outbox is sent",
    "after the outbox is sent",
    "before an answer is stored",
)

FAULTS: dict[str, Fault] = {
    **{
        f"{role} killed": Fault(f"kill -9 of {role}", partial(_kill, role), role, alone=role == "inventory")
        for role in KILLED
    },
    "inventory restarted": Fault("SIGTERM, and a successor", partial(restart, "inventory"), "inventory", alone=True),
    **{
        f"inventory {point}": Fault(f"dies when it has {point}", partial(crash, "inventory", point), "inventory")
        for point in CRASHES
    },
    "inventory in a snapshot": Fault("dies with a snapshot half written", _crash_in_snapshot, "inventory"),
    "inventory loading": Fault("killed, and its successor dies while it loads", _crash_loading, "inventory"),
    "inventory rebalancing": Fault("dies while a worker joins", _crash_rebalancing, "inventory"),
    **{
        f"order-writer {point}": Fault(f"dies {point}", partial(crash, "order-writer", point), "order-writer")
        for point in WRITER_CRASHES
    },
    "inventory frozen": Fault(
        "SIGSTOP for longer than its session, a successor, SIGCONT",
        partial(freeze, "inventory"),
        "inventory",
        (12.0, 15.0),
        zombie=True,
    ),
    "inventory frozen with decisions": Fault(
        "the same, at the instant when it has decided and not yet produced",
        partial(_freeze_at, "inventory", "decided"),
        "inventory",
        (12.0, 15.0),
        zombie=True,
    ),
    "order-writer frozen": Fault(
        "SIGSTOP for longer than its session, a successor, SIGCONT",
        partial(freeze, "order-writer"),
        "order-writer",
        (12.0, 15.0),
    ),
    "order-writer frozen before COMMIT": Fault(
        "the same, when it has written a batch and not yet committed it",
        partial(_freeze_at, "order-writer", "before COMMIT"),
        "order-writer",
        (12.0, 15.0),
    ),
    "redis frozen": Fault("does not answer for some seconds", partial(freeze, "redis"), "redis", (3.0, 8.0)),
    "postgres away": Fault("does not answer for half a minute", partial(freeze, "postgres"), "postgres", (30.0, 30.0)),
    "rebalance storm": Fault(
        "inventory workers join, leave and are killed, every 3 s", _storm, "inventory", (30.0, 60.0)
    ),
    "two owners, two groups": Fault(
        "a second worker owns all partitions for good",
        _two_groups,
        "inventory",
        (12.0, 20.0),
        zombie=True,
        odd=True,
    ),
    "two owners, one name": Fault(
        "a second worker has the name of a first, and takes its place again and again",
        _same_name,
        "inventory",
        (12.0, 20.0),
    ),
    "two rule versions": Fault(
        "rolled through worker by worker, the old one frozen and thawed",
        _rolling,
        "inventory",
        (12.0, 15.0),
        zombie=True,
        odd=True,
    ),
}
