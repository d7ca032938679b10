"""Links that break, hang and drag, while the processes at both ends live."""

import time
from functools import partial
from random import Random

from tests.chaos.arena import LOOK_S, Arena
from tests.chaos.faults.fault import Fault
from tests.chaos.links import LINKS, named

CUTS = 3
BETWEEN_CUTS_S = (0.2, 1.0)
LATENCY_S = (0.1, 0.5)
RECONNECT_S_MAX = 10.0


def _cut(link: str, arena: Arena, dice: Random, _seconds: float) -> bool:
    """Whoever reconnects between two cuts is cut again."""
    wire, cut = arena.links[link], 0
    for _ in range(CUTS):
        deadline = time.monotonic() + RECONNECT_S_MAX
        while not wire.links and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        cut += wire.cut()
        time.sleep(dice.uniform(*BETWEEN_CUTS_S))
    arena.tell(f"{link}: {cut} connections were cut")
    return cut > 0


def _refused(link: str, arena: Arena, _dice: Random, seconds: float) -> bool:
    wire = arena.links[link]
    cut = wire.refuse()
    arena.tell(f"{link}: {cut} connections were cut, new ones are refused for {seconds:.0f} s")
    try:
        time.sleep(seconds)
    finally:
        wire.listen()
    return cut > 0


def _stalled(link: str, arena: Arena, _dice: Random, seconds: float) -> bool:
    wire = arena.links[link]
    arena.tell(f"{link}: nothing passes for {seconds:.0f} s, on {wire.links} connections")
    hit = wire.links > 0
    wire.stall()
    try:
        time.sleep(seconds)
    finally:
        wire.flow()
    return hit


def slow(link: str, between_s: tuple[float, float], arena: Arena, dice: Random, seconds: float) -> bool:
    """Every piece is late, each way, by as much as the dice say."""
    wire, latency_s = arena.links[link], dice.uniform(*between_s)
    before = sum(wire.passed.values())
    wire.slow(latency_s=latency_s)
    try:
        time.sleep(seconds)
    finally:
        wire.flow()
    passed = sum(wire.passed.values()) - before
    arena.tell(f"{link}: {passed:,} bytes passed in {seconds:.0f} s, each piece {latency_s * 1000:.0f} ms late")
    return passed > 0


FAULTS: dict[str, Fault] = {}
for _role, _component in LINKS:
    _link = named(_role, _component)
    # Inventory and order-writer lose their session: longer than that, so that a successor could have been there.
    _stall_s = (11.0, 14.0) if _component == "kafka" else (6.0, 9.0)
    FAULTS |= {
        f"{_link} cut": Fault("every connection is reset, three times within seconds", partial(_cut, _link), _link),
        f"{_link} stalled": Fault("connections stay, nothing passes", partial(_stalled, _link), _link, _stall_s),
        f"{_link} slow": Fault(
            "every piece is late by 0.1 to 0.5 s", partial(slow, _link, LATENCY_S), _link, (5.0, 7.0)
        ),
    }
FAULTS["gateway-kafka refused"] = Fault(
    "no connection for longer than a record lives in a producer",
    partial(_refused, "gateway-kafka"),
    "gateway-kafka",
    (7.0, 10.0),
)
FAULTS["order-writer-postgres refused"] = Fault(
    "connections are refused for half a minute",
    partial(_refused, "order-writer-postgres"),
    "order-writer-postgres",
    (30.0, 30.0),
)
