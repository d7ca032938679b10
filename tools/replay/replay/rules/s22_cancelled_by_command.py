"""What an operator cancels is what the commands mean: nothing else, and all of it.

A cancellation of a product means the reservations below the place that it carries, of several with one request id the
first does. Commands of before they had a place meant whatever was reserved when they were read.
"""

from collections.abc import Iterator
from typing import NamedTuple

from replay.contract import Command, LogPosition, read_command
from replay.evidence import SETTLE_MS, CommandRecord, Evidence, Findings, Violation, asked_at

NAME = "S22"
NEEDS: tuple[str, ...] = ("commands",)
LOOKS_AT = "cancellations"
REASON, ACTOR = "cancelled_by_operator", "operator"
NO_PLACE = 2**63  # beyond every reservation


class _Meant(NamedTuple):
    """Purchases, the highest place by product, and the cancellations of products with a place."""

    purchases: set[str]
    below: dict[str, int]
    placed: list[tuple[CommandRecord, Command, int]]

    def holds(self, purchase_id: str, product_id: str, reservation: LogPosition) -> bool:
        """Whether some command means this reservation."""
        return purchase_id in self.purchases or reservation[1] < self.below.get(product_id, 0)


def check(evidence: Evidence) -> Findings:
    """Both ways: each release and row has its command; what was to be undone is undone, once there was time for it."""
    assert evidence.commands is not None
    meant = _read(evidence.commands)
    looked = 0
    for at, purchase_id, product_id, reservation in _cancelled(evidence):
        looked += 1
        if not meant.holds(purchase_id, product_id, reservation):
            yield Violation(at, f"{purchase_id}: cancelled by an operator, and no command means it")
    yield from _spared(evidence, meant)
    return looked + len(meant.placed)


def _read(records: list[CommandRecord]) -> _Meant:
    meant, known = _Meant(set(), {}, []), set[str]()
    for record in records:
        command = read_command(record.value)
        if command is None or command.actor != ACTOR:
            continue
        if command.type == "CancelRequested":
            meant.purchases.add(command.purchase_id)
        elif command.type == "CancelProductRequested" and command.request_id not in known:
            end = command.requests_end
            if end is not None:
                known.add(command.request_id)
                meant.placed.append((record, command, end))
            before = meant.below.get(command.product_id, 0)
            meant.below[command.product_id] = max(before, NO_PLACE if end is None else end)
    return meant


def _cancelled(evidence: Evidence) -> Iterator[tuple[str, str, str, LogPosition]]:
    """Where it is seen, the purchase, its product and its reservation; a reservation may be seen twice."""
    for place, answer in evidence.answers():
        if answer.type == "Released" and answer.reason == REASON and answer.reservation is not None:
            yield asked_at(place), answer.purchase_id, answer.product_id, answer.reservation
    for row in evidence.database.rows.values() if evidence.database else ():
        if row.reason == REASON:
            yield f"purchases/{row.purchase_id}", row.purchase_id, row.product_id, row.place


def _spared(evidence: Evidence, meant: _Meant) -> Iterator[Violation]:
    database = evidence.database
    if database is None:
        return
    due: dict[str, int] = {}
    for record, command, end in meant.placed:
        if record.at_ms < database.now_ms - SETTLE_MS:
            due[command.product_id] = max(due.get(command.product_id, 0), end)
    for row in database.rows.values():
        if row.status in ("reserved", "confirmed") and row.place[1] < due.get(row.product_id, 0):
            what = f"{row.status}, and an operator cancelled it more than {SETTLE_MS // 1000} s ago"
            yield Violation(f"purchases/{row.purchase_id}", what)
