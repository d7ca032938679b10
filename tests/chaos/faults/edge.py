"""Faults of the edge of the system, for rounds at the edge: gateways that die around the log's acknowledgement or see
decisions late, a Redis that drags, workers that stand still."""

import time
from functools import partial
from random import Random

from tests.chaos.arena import Arena
from tests.chaos.builds.behind import behind
from tests.chaos.faults.fault import Fault
from tests.chaos.faults.processes import crash, freeze, restart
from tests.chaos.faults.wires import slow

CRASHES = {
    "admitted": "dies when it has admitted purchases, before they are handed to the log",
    "produced": "dies when the log may have them, and has perhaps not said so",
    "acknowledged": "dies when the log has acknowledged, before anybody hears of it",
    "answered": "dies when buyers have their answer",
}
LATE_MS = (60, 200)  # a tick of the limiter takes 50 at most
BEHIND_S_MAX = 0.08  # so that a view is fresh in time as often as not

ALSO = (
    "gateway killed",
    "redis killed",
    "redis flushed",
    "redis failed over",
    "redis evicting",
    "redis frozen",
    "gateway-redis cut",
    "gateway-redis stalled",
)


def _behind(arena: Arena, _dice: Random, seconds: float) -> bool:
    names = arena.names("gateway")
    arena.tell(f"{' and '.join(names)} hear of decisions up to {BEHIND_S_MAX * 1_000:.0f} ms late")
    with behind(arena.folder, names, BEHIND_S_MAX):
        time.sleep(seconds)
    return True


FAULTS: dict[str, Fault] = {
    "gateway restarted": Fault("SIGTERM, and a successor", partial(restart, "gateway"), "gateway"),
    **{
        f"gateway {point}": Fault(sentence, partial(crash, "gateway", point), "gateway")
        for point, sentence in CRASHES.items()
    },
    "gateways behind": Fault("both hear of decisions up to 80 ms late", _behind, "gateway", (4.0, 6.0)),
    **{
        f"redis {late} ms away": Fault(
            f"every piece is {late} ms late",
            partial(slow, "gateway-redis", (late / 1_000,) * 2),
            "gateway-redis",
            (5.0, 7.0),
        )
        for late in LATE_MS
    },
    "workers frozen": Fault(
        "no decision for some seconds; a crowd comes for what is gone",
        partial(freeze, "inventory"),
        "inventory",
        (4.0, 5.0),
    ),
}
CROWDED = {"workers frozen"}


def hurts(name: str) -> str:
    """What a fault of these hurts: redis, the views of gateways, or gateways themselves."""
    if name in {"workers frozen", "gateways behind"}:
        return "views"
    return "redis" if "redis" in name else "gateway"
