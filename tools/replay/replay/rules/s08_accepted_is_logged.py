"""What was accepted is in the log, what was refused is not."""

from replay.contract import LogPosition, PurchaseRequest, read_request, split
from replay.evidence import Evidence, Findings, Violation, asked_at
from replay.journal import UNANSWERED, Attempt

NAME = "S8"
NEEDS: tuple[str, ...] = ("journal",)
LOOKS_AT = "keys"


def check(evidence: Evidence) -> Findings:
    """Compare ids both ways.

    A refusal names no purchase (its id is a secret of the gateway), so refusals are judged together: the log may
    hold purchases of this product that nobody was told of only for keys whose fate is unknown.
    """
    assert evidence.journal is not None
    logged = _logged(evidence)
    told: set[str] = set()
    unknown = 0
    for attempt in evidence.journal.attempts:
        unknown += _unknown(attempt)
        if not attempt.purchase_id:
            continue
        told.add(attempt.purchase_id)
        if attempt.purchase_id not in logged:
            yield Violation(f"journal/{attempt.line}", f"{attempt.purchase_id} was accepted and is not in the log")
    ours = evidence.journal.product_id
    untold = [place for key, (place, product_id) in logged.items() if product_id == ours and key not in told]
    if len(untold) > unknown:
        what = f"{len(untold)} logged purchases belong to no accepted key, and only {unknown} keys are in doubt"
        yield Violation(asked_at(untold[0]), what)
    return len(evidence.journal.attempts)


def _unknown(attempt: Attempt) -> bool:
    """A send without an answer, or with 503, may be in the log."""
    last = [told.status for told in attempt.answers]
    return not attempt.purchase_id and (not last or any(status in {UNANSWERED, 503} for status in last))


def _logged(evidence: Evidence) -> dict[str, tuple[LogPosition, str]]:
    """Where each purchase was logged first, and for which product."""
    found: dict[str, tuple[LogPosition, str]] = {}
    for partition in evidence.partitions.values():
        for record in partition.requests:
            requests = split(record.value)
            for index, raw in enumerate(() if isinstance(requests, str) else requests):
                request = read_request(raw)
                if isinstance(request, PurchaseRequest):
                    place = (partition.number, record.offset, index)
                    found.setdefault(request.purchase_id, (place, request.product_id))
    return found
