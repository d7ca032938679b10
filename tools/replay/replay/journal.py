"""What a driver of a sale was told, as a file: one line an idempotency key, so that S8 to S11 can be judged later.

The first line names the sale. Any driver can write it; `from_crowd` takes the journal of `devstack.crowd` as it is.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

FORMAT = "stampede-journal"
UNANSWERED = 0  # the status of a send that got no answer: it may or may not be in the log


class JournalUnreadable(Exception):
    """The file is no journal, or only a part of one; the message says which line."""


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


class Attempt(NamedTuple):
    """One idempotency key of one buyer. `purchase_id` is empty if no answer named one; `twin`: sent twice at once.

    `polled` are the (version, status) of a follower, in order; `outcome` the last thing the buyer was told.
    """

    line: int
    buyer: str
    key: str
    purchase_id: str
    outcome: str
    twin: bool
    answers: list[Told]
    polled: list[tuple[int, str]]


class Limits(NamedTuple):
    """The limits the sale was under, as in the setting, all by one address; how many gateways shared them.

    `losses`: how many times the counters were lost: by each flush of Redis, and by each gateway that was without it.
    """

    line: str
    gateways: int = 1
    losses: int = 0


class Journal(NamedTuple):
    """Everything a driver was told about one product. Without `limits`, S11 cannot be judged."""

    product_id: str
    attempts: list[Attempt]
    limits: Limits | None = None


class _CrowdSale(Protocol):
    @property
    def product_id(self) -> str: ...


class _CrowdAttempt(Protocol):
    buyer: str
    key: str
    purchase_id: str
    outcome: str
    twin: bool
    answers: list[tuple[int, bytes]]
    times: list[tuple[float, float]]


class CrowdJournal(Protocol):
    """The shape of `devstack.crowd.Journal`, so that neither tool imports the other."""

    @property
    def sale(self) -> _CrowdSale:
        """What was sold."""

    @property
    def attempts(self) -> Iterable[Any]:
        """Of `_CrowdAttempt`'s shape."""


def from_crowd(told: CrowdJournal, limits: Limits | None = None) -> Journal:
    """The journal of a crowd, and the limits it was under, if they are known."""
    return Journal(told.sale.product_id, [_attempt(n, one) for n, one in enumerate(told.attempts, 2)], limits)


def _attempt(line: int, one: _CrowdAttempt) -> Attempt:
    answers = [Told(*answer, *times) for answer, times in zip(one.answers, one.times, strict=True)]
    polled: list[tuple[int, str]] = list(getattr(one, "polled", []))
    return Attempt(line, one.buyer, one.key, one.purchase_id, one.outcome, one.twin, answers, polled)


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
            "twin": one.twin, "polled": one.polled,
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
                raise JournalUnreadable(f"{path} is not a journal of a sale.")
            limits = Limits(**head["limits"]) if "limits" in head else None
            attempts = [_read_line(number, json.loads(line)) for number, line in enumerate(file, 2)]
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
        number, line["buyer"], line["key"], line["purchase_id"], line["outcome"], line["twin"], answers, polled
    )
