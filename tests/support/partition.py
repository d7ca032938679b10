"""Carries out what a `Partition` asks for, at once and without faults, on an in-memory log."""

from inventory.effects import Acknowledge, Bury, Effect, LoadTable, Produce, ReadRequests, WriteCommit, WriteParts
from inventory.protocol import Partition
from stampede_schemas.topics import DECISIONS, STOCK_SNAPSHOTS
from tests.support.log import MemoryLog, run_load


def carry_out(log: MemoryLog, partition: Partition, effects: list[Effect]) -> list[Effect]:
    """Do these effects and all that follow from them; returns them in the order they were done."""
    done: list[Effect] = []
    queue = list(effects)
    while queue:
        effect = queue.pop(0)
        done.append(effect)
        match effect:
            case LoadTable(epoch, known):
                queue += partition.loaded(epoch, run_load(log, partition.number, known=known), 0.0)
            case ReadRequests(epoch, start, end):
                queue += partition.requests_read(epoch, log.requests[start:end])
            case Bury(epoch):
                queue += partition.buried(epoch)
            case Produce(flights):
                for flight in flights:
                    landed = log.append(DECISIONS.name, flight.value)
                    queue += partition.reported(flight.source_offset, landed)
            case WriteParts(name, pack):
                values = list(pack())
                queue += partition.packed(name)
                queue += partition.parts_written(name, [log.append(STOCK_SNAPSHOTS.name, v) for v in values])
            case WriteCommit(value):
                log.append(STOCK_SNAPSHOTS.name, value)
            case Acknowledge():
                pass
            case _:
                raise AssertionError(effect)
    return done


def settle(log: MemoryLog, partition: Partition, count: int | None = None) -> list[Effect]:
    """Assign the partition and deliver the first `count` requests (all), one by one."""
    done = carry_out(log, partition, partition.assigned())
    for record in log.requests[:count]:
        done += carry_out(log, partition, partition.delivered(record))
    assert partition.settled
    return done
