"""How long nothing was decided after an inventory worker died: read from the log afterwards, by the broker's clock."""

import statistics
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from replay.evidence import Evidence, Partition
from tests.chaos.arena import Kill

WAITED_MS_MAX = 1_000  # a partition tells something only if what it decides next was asked so soon after the kill


class Recovery(NamedTuple):
    """One partition of one victim: from its kill to the first decision of its successor."""

    clean: bool
    seconds: float


def recoveries(evidence: Evidence, kills: Iterable[Kill]) -> Iterator[Recovery]:
    """One for each partition that had work when its owner died, and whose next owner lived until it decided."""
    in_order = sorted(kills)
    for kill, following in zip(in_order, [*in_order[1:], None], strict=False):
        for number in sorted(kill.partitions):
            found = _next_decision_ms(evidence.partitions[number], kill.at_ms)
            if found is not None and (following is None or found < following.at_ms):
                yield Recovery(kill.clean, (found - kill.at_ms) / 1000)


def _next_decision_ms(partition: Partition, at_ms: int) -> int | None:
    """When the first record of another load was appended; None if its request came so late that nobody waited."""
    before = [record.load for record in partition.counting if record.at_ms <= at_ms]
    after = (record for record in partition.counting if record.at_ms > at_ms and before and record.load != before[-1])
    first = next(after, None)
    if first is None or partition.asked[first.source_offset].at_ms > at_ms + WAITED_MS_MAX:
        return None
    return first.at_ms


def summary(found: Iterable[Recovery], *, clean: bool) -> str:
    """How many, median and worst."""
    seconds = sorted(one.seconds for one in found if one.clean is clean)
    if not seconds:
        return "not measured"
    return f"{len(seconds)} times, p50 {statistics.median(seconds):.1f} s, max {seconds[-1]:.1f} s"
