"""Every request has exactly one decision, every decision a request."""

from replay.contract import split
from replay.evidence import Evidence, Findings, Partition, Violation, asked_at, decided_at

NAME = "S3"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "requests"


def check(evidence: Evidence) -> Findings:
    """Count both topics against each other; a request that nobody answered for 30 s counts as lost."""
    looked = 0
    for partition in evidence.partitions.values():
        answered = -1
        for record in partition.counting:
            answered = record.source_offset
            asked = partition.asked.get(answered)
            at = decided_at(partition.number, record.offset)
            if asked is None:
                yield Violation(at, f"answers request {answered}, which does not exist")
                continue
            requests = split(asked.value)
            wanted = 1 if isinstance(requests, str) else len(requests)
            looked += wanted
            if record.answers is not None and len(record.answers) != wanted:
                yield Violation(at, f"{len(record.answers)} decisions on the {wanted} requests of offset {answered}")
        yield from _gaps(partition)
        for asked in partition.requests:
            if asked.offset > answered and asked.at_ms < evidence.taken_at_ms - evidence.settle_ms:
                waited_s = (evidence.taken_at_ms - asked.at_ms) / 1_000
                what = f"no decision counts for it after {waited_s:.0f} s; {len(partition.void)} records are void"
                yield Violation(asked_at((partition.number, asked.offset, 0)), what)
                break
    return looked


def _gaps(partition: Partition) -> Findings:
    """Offsets of both topics are dense from 0: nothing trims or compacts them."""
    for topic, records in (("requests", partition.requests), ("decisions", partition.decisions)):
        for expected, record in enumerate(records):
            if record.offset != expected:
                what = f"offset {expected} is missing: part of the log is gone"
                yield Violation(f"{topic}/{partition.number}/{record.offset}", what)
                break
    return 0
