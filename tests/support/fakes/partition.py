"""Carries out what a `PartitionProcessor` asks for, at once and without faults, on an in-memory log."""

from inventory.effects import (
    Acknowledge,
    Effect,
    LoadTable,
    Produce,
    ReadRequests,
    SendDeadLetters,
    WriteCommit,
    WriteParts,
)
from inventory.protocol import PartitionProcessor
from stampede_schemas.topics import DECISIONS, STOCK_SNAPSHOTS
from tests.support.fakes.log import MemoryLog, run_load


def carry_out(log: MemoryLog, partition: PartitionProcessor, effects: list[Effect]) -> list[Effect]:
    """Do these effects and all that follow from them; returns them in the order they were done."""
    done: list[Effect] = []
    queue = list(effects)
    while queue:
        effect = queue.pop(0)
        done.append(effect)
        match effect:
            case LoadTable(attempt, known):
                queue += partition.loaded(attempt, run_load(log, partition.number, known=known), 0.0)
            case ReadRequests(attempt, start, end):
                queue += partition.requests_read(attempt, log.requests[start:end])
            case SendDeadLetters(attempt):
                queue += partition.dead_letters_sent(attempt)
            case Produce(records):
                for record in records:
                    landed = log.append(DECISIONS.name, record.value)
                    queue += partition.reported(record.source_offset, landed)
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


def settle(log: MemoryLog, partition: PartitionProcessor, count: int | None = None) -> list[Effect]:
    """Assign the partition and deliver the first `count` requests (all), one by one."""
    done = carry_out(log, partition, partition.assigned())
    for record in log.requests[:count]:
        done += carry_out(log, partition, partition.delivered(record))
    assert partition.drained
    return done
