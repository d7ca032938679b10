"""Every decision is the one a reference model makes from the requests."""

from replay.contract import Answer, LogPosition, read_request, split
from replay.evidence import Counted, Evidence, Findings, Partition, Violation, asked_at
from replay.model import Model

NAME = "S4"
NEEDS: tuple[str, ...] = ()
LOOKS_AT = "decisions"


def check(evidence: Evidence) -> Findings:
    """Let the model answer all requests. What follows from a difference is no news: a product is reported once."""
    looked = 0
    for partition in evidence.partitions.values():
        model, wrong = Model(partition.number, evidence.generation), set[str]()
        newer = _second_rules(partition)
        for record in partition.counting:
            expected = _answers(model, partition, record, newer)
            for index, (said, right) in enumerate(zip(record.answers or (), expected, strict=False)):
                looked += 1
                if said != right and right.product_id not in wrong:
                    wrong.add(right.product_id)
                    at = asked_at((partition.number, record.source_offset, index))
                    yield Violation(at, _difference(said, right))
    return looked


def _second_rules(partition: Partition) -> LogPosition | None:
    """Where the present rules began to decide: what they say differently is an `Ignored` of the second version."""
    return next((place for place, said in partition.answers() if (said.type, said.v) == ("Ignored", 2)), None)


def _answers(model: Model, partition: Partition, record: Counted, newer: LogPosition | None) -> list[Answer]:
    asked = partition.asked.get(record.source_offset)
    if asked is None:
        return []
    requests = split(asked.value)
    if isinstance(requests, str):
        return [Answer("Unreadable", reason=requests)]
    answers = []
    for index, raw in enumerate(requests):
        request = read_request(raw)
        if isinstance(request, str):
            answers.append(Answer("Unreadable", reason=request))
        else:
            place = (partition.number, record.source_offset, index)
            model.older = newer is None or place < newer
            answers.append(model.answer(request, place, asked.at_ms))
    return answers


def _difference(said: Answer, right: Answer) -> str:
    differs = [f for f in said.__struct_fields__ if getattr(said, f) != getattr(right, f)]
    if "type" in differs or "reason" in differs:
        differs = ["type", "reason"]
    told = ", ".join(f"{f} {getattr(said, f)!r}" for f in differs)
    wanted = ", ".join(f"{f} {getattr(right, f)!r}" for f in differs)
    return f"{right.purchase_id or right.product_id}: decided {told}; the model says {wanted}"
