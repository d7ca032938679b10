"""Nothing is skipped: the very bytes are answered, or are a dead letter; of very many, size, SHA-256 and beginning."""

from hashlib import sha256
from zlib import crc32

from replay.contract import LETTER_BEGINNING, LETTER_BYTES_MAX, split
from replay.evidence import Counted, Evidence, Findings, Letter, Partition, Record, Violation, asked_at, decided_at

NAME = "S16"
NEEDS: tuple[str, ...] = ("letters",)
LOOKS_AT = "request records"


def check(evidence: Evidence) -> Findings:
    """Compare checksums and clocks, letters with the log's bytes, and repeats with the answer they name."""
    letters = {letter.source: letter for letter in evidence.letters or ()}
    looked = 0
    for partition in evidence.partitions.values():
        outcomes: set[tuple[int, int, int, str]] = set()
        for record in partition.counting:
            asked = partition.asked.get(record.source_offset)
            if asked is None:
                continue  # S3 says so
            looked += 1
            at = decided_at(partition.number, record.offset)
            if record.crc != crc32(asked.value or b""):
                yield Violation(at, f"answers other bytes than those of request {record.source_offset}")
            if record.appended_at_ms != asked.at_ms:
                yield Violation(at, f"says {record.appended_at_ms}; request {asked.offset} came at {asked.at_ms}")
            yield from _buried(partition, record, asked, letters)
            yield from _repeats(partition.number, record, outcomes)
    return looked


def _buried(partition: Partition, record: Counted, asked: Record, letters: dict[str, Letter]) -> Findings:
    for index, answer in enumerate(record.answers or ()):
        if answer.type != "Unreadable":
            continue
        at = asked_at((partition.number, record.source_offset, index))
        letter = letters.get(at)
        requests = split(asked.value)
        wanted = (asked.value or b"") if isinstance(requests, str) else bytes(requests[index : index + 1][0])
        if letter is None:
            yield Violation(at, f"{answer.reason}, and there is no dead letter")
        elif not _holds(letter, wanted):
            yield Violation(at, f"its dead letter holds {len(letter.value)} other bytes than the log's {len(wanted)}")
    return 0


def _holds(letter: Letter, wanted: bytes) -> bool:
    if len(wanted) <= LETTER_BYTES_MAX:
        return letter.value == wanted and letter.cut is None
    said = letter.cut == (len(wanted), sha256(wanted).hexdigest()) or not letter.headers  # an exported one has none
    return said and letter.value == wanted[:LETTER_BEGINNING]


def _repeats(partition: int, record: Counted, outcomes: set[tuple[int, int, int, str]]) -> Findings:
    for index, answer in enumerate(record.answers or ()):
        if answer.type in {"Reserved", "Rejected"}:
            outcomes.add((partition, record.source_offset, index, answer.purchase_id))
        elif answer.reason == "answered" and (*(answer.of or (-1, -1, -1)), answer.purchase_id) not in outcomes:
            at = asked_at((partition, record.source_offset, index))
            yield Violation(at, f"ignored as a repeat of {answer.of}, where {answer.purchase_id} had no answer")
    return 0
