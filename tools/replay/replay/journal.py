"""The purchase journal: what the driver of a sale was told, one entry an idempotency key, for S8 to S11.

As a file it has a line an entry; the first line names the sale. `devstack.load_generator` fills one; any driver can.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = "stampede-journal"
FIRST_LINE = 2  # of an attempt: the first names the sale
UNANSWERED = 0  # the status of a send that got no answer: it may or may not be in the log


class JournalUnreadable(Exception):
    """The file is no purchase journal, or only a part of one; the message says which line."""


class Told(NamedTuple):
    """One answer to a send, in the order of arrival. `status` 0: none came. `body`: its bytes.

    The instants are the driver's, in ms since any beginning; 0: not known.
    """

    status: int
    body: bytes
    sent_ms: float = 0.0
    answered_ms: float = 0.0

    @property
    def content(self) -> dict[str, Any]:
        """The body as JSON, empty if it is no object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(slots=True)
class Attempt:
    """One idempotency key of one buyer, and what came of it. `purchase_id` is empty if no answer named one.

    `outcome` is the last status the buyer was told, or "sold_out" for an early rejection, with its `reason`;
    `duplicate`: sent twice at once; `cancels`: when the buyer cancels it, "at once" or "later". `polled` are the
    (version, status) of a follower, in order. `line` is where it stands in a file.
    """

    buyer: str
    key: str
    purchase_id: str = ""
    outcome: str = "unanswered"
    duplicate: bool = False
    answers: list[Told] = field(default_factory=list)
    polled: list[tuple[int, str]] = field(default_factory=list)
    line: int = 0
    reason: str = ""
    cancels: str = ""


class Limits(NamedTuple):
    """The limits the sale was under, as in the setting, all by one address; how many gateways shared them.

    `losses`: how many times the counters were lost: by each flush of Redis, and by each gateway that was without it.
    """

    line: str
    gateways: int = 1
    losses: int = 0


@dataclass(slots=True)
class Journal:
    """Everything a driver was told about one product. Without `limits`, S11 cannot be judged."""

    product_id: str
    attempts: list[Attempt] = field(default_factory=list)
    limits: Limits | None = None

    def begin(self, attempt: Attempt) -> Attempt:
        """Take in one more, on the line that it will have in a file."""
        attempt.line = len(self.attempts) + FIRST_LINE
        self.attempts.append(attempt)
        return attempt

    def count(self, outcome: str) -> int:
        """How many attempts ended so."""
        return sum(attempt.outcome == outcome for attempt in self.attempts)

    @property
    def sold(self) -> int:
        """How many are confirmed and will not be cancelled."""
        return sum(attempt.outcome == "confirmed" and not attempt.cancels for attempt in self.attempts)

    @property
    def logged(self) -> list[Attempt]:
        """Those that were told a purchase id: the log has them."""
        return [attempt for attempt in self.attempts if attempt.purchase_id]


def write(path: Path, journal: Journal) -> None:
    """Write it, one line an attempt."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in _lines(journal))


def _lines(journal: Journal) -> Iterator[dict[str, Any]]:
    head = {"kind": FORMAT, "version": 1, "product_id": journal.product_id, "attempts": len(journal.attempts)}
    yield head | ({"limits": journal.limits._asdict()} if journal.limits else {})
    for one in journal.attempts:
        yield {
            "buyer": one.buyer, "key": one.key, "purchase_id": one.purchase_id, "outcome": one.outcome,
            "twin": one.duplicate, "polled": one.polled,
            "answers": [
                [told.status, base64.b64encode(told.body).decode(), told.sent_ms, told.answered_ms]
                for told in one.answers
            ],
        }  # fmt: skip


def read(path: Path) -> Journal:
    """Read it back.

    Raises:
        JournalUnreadable: it is not one, or not whole.
    """
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(next(file, "null"))
            if not isinstance(head, dict) or (head.get("kind"), head.get("version")) != (FORMAT, 1):
                raise JournalUnreadable(f"{path} is not a purchase journal.")
            limits = Limits(**head["limits"]) if "limits" in head else None
            attempts = [_read_line(number, json.loads(line)) for number, line in enumerate(file, FIRST_LINE)]
    except OSError as error:
        raise JournalUnreadable(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise JournalUnreadable(f"{path} is damaged: {error!r}.") from None
    if len(attempts) != head["attempts"]:
        raise JournalUnreadable(f"{path} has {len(attempts)} of {head['attempts']} attempts: it was cut off.")
    return Journal(head["product_id"], attempts, limits)


def _read_line(number: int, line: dict[str, Any]) -> Attempt:
    answers = [Told(status, base64.b64decode(body), *times) for status, body, *times in line["answers"]]
    polled = [(int(version), str(status)) for version, status in line["polled"]]
    return Attempt(
        line["buyer"], line["key"], line["purchase_id"], line["outcome"], line["twin"], answers, polled, number
    )
