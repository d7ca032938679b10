"""Every fault by its name, and what a plan must know of it."""

from collections.abc import Mapping

from tests.chaos.faults import cache, database, edge, host, processes, wires
from tests.chaos.faults.fault import Fault
from tests.chaos.plan import Kind

FAULTS: dict[str, Fault] = {
    **processes.FAULTS,
    **wires.FAULTS,
    **database.FAULTS,
    **cache.FAULTS,
    **host.FAULTS,
}
AT_THE_EDGE = edge.FAULTS | {name: FAULTS[name] for name in edge.ALSO}


def kinds(faults: Mapping[str, Fault]) -> dict[str, Kind]:
    """What a plan must know of them."""
    return {name: Kind(fault.target, fault.lasts_s, fault.odd, fault.alone) for name, fault in faults.items()}


KINDS = kinds(FAULTS)
KINDS_AT_THE_EDGE = kinds(AT_THE_EDGE)
