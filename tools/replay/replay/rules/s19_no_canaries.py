"""No name, address, token or secret stands in a record, a dead letter, a row, a log, a span or a metric.

What must not be there are canaries: words that a driver used as such, given in a file. A violation says where one was
found and which one by number; it does not repeat it.
"""

from collections.abc import Iterator

from replay.evidence import Evidence, Findings, Violation

NAME = "S19"
NEEDS: tuple[str, ...] = ("canaries",)
LOOKS_AT = "texts"


def check(evidence: Evidence) -> Findings:
    """Search every byte there is."""
    assert evidence.canaries is not None
    looked = 0
    for at, text in _texts(evidence):
        looked += 1
        for number, forms in enumerate(evidence.canaries.words, 1):
            if any(form in text for form in forms):
                yield Violation(at, f"canary {number} is in it")
    return looked


def _texts(evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    for partition in evidence.partitions.values():
        for topic, records in (("requests", partition.requests), ("decisions", partition.decisions)):
            for record in records:
                yield f"{topic}/{partition.number}/{record.offset}", record.value or b""
    for letter in evidence.letters or ():
        headers = b"\n".join(value for _, value in letter.headers)
        yield (
            f"dead-letters/{letter.partition}/{letter.offset}",
            b"\n".join((letter.value, headers, letter.reason.encode())),
        )
    for command in evidence.commands or ():
        yield f"order-commands/{command.partition}/{command.offset}", command.value
    for order in evidence.orders or ():
        yield "orders", repr(order).encode()
    for row in evidence.database.rows.values() if evidence.database else ():
        yield f"purchases/{row.purchase_id}", repr(row).encode()
    assert evidence.canaries is not None
    yield from evidence.canaries.texts
