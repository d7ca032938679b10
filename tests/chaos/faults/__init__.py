"""Every fault by its name, and what a plan must know of it."""

from tests.chaos.faults import cache, database, host, processes, wires
from tests.chaos.faults.fault import Fault
from tests.chaos.plan import Kind

FAULTS: dict[str, Fault] = {
    **processes.FAULTS,
    **wires.FAULTS,
    **database.FAULTS,
    **cache.FAULTS,
    **host.FAULTS,
}
KINDS = {name: Kind(fault.target, fault.lasts_s, fault.odd, fault.alone) for name, fault in FAULTS.items()}
