"""The simulated payment provider's own books: one JSON line per fact, in the order in which things happened."""

import json
from pathlib import Path

from replay.evidence import Payment
from replay.failure import CannotCheck

NAME = "payments.jsonl"


def read(path: Path) -> list[Payment]:
    """Every fact. Half a line is none: its writer died in the middle and had told nobody.

    Raises:
        CannotCheck: there is no such file.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CannotCheck(f"the payments in {path} cannot be read: {error.strerror}.") from None
    return [fact for number, line in enumerate(lines, 1) if (fact := _fact(number, line)) is not None]


def beside(endpoints: Path) -> list[Payment] | None:
    """Those of the local stack whose `endpoints.json` this is; None if it keeps none."""
    path = endpoints.parent / NAME
    return read(path) if path.exists() else None


def _fact(number: int, line: bytes) -> Payment | None:
    try:
        told = json.loads(line)
        return Payment(
            number, told["at_ms"], told["event"], told["purchase_id"], told["amount_minor"], told["currency"]
        )
    except (ValueError, KeyError, TypeError):
        return None
