"""The inventory with a bug: `python -m tests.planted.builds.inventory`."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Raw
from msgspec.structs import replace

from inventory import __main__ as program
from inventory import domain, protocol, worker
from inventory.effects import DeadLetter
from inventory.loading import Record, load
from inventory.protocol import PartitionProcessor
from inventory.table import Product, StockTable
from stampede_schemas.codec import UnreadableMessage, encode_decisions
from stampede_schemas.dead_letters import Headers
from stampede_schemas.decisions import AnyDecision, Ignored, Released, Reserved
from stampede_schemas.identifiers import Millis, Position, RequestId, WriterEpoch
from stampede_schemas.requests import PurchaseRequested, ReleaseRequested
from tests.planted.builds.planting import exchange, plant
from tests.simulation.mutants import FirstCopyCounts, SendsOtherBytes

_purchase, _release, _refusal = domain._purchase, domain._release, domain._refusal
_apply_reserved, _apply_released = domain._apply_reserved, domain._apply_released


def _forgets_answers(
    table: StockTable, product: Product | None, request: PurchaseRequested, now: Millis
) -> AnyDecision:
    known = table.purchases, table.rejected, table.rejected_before
    table.purchases, table.rejected, table.rejected_before = {}, {}, {}
    try:
        return _purchase(table, product, request, now)
    finally:
        table.purchases, table.rejected, table.rejected_before = known


def _finds_no_difference(
    table: StockTable, product: Product | None, request: PurchaseRequested, now: Millis
) -> AnyDecision:
    decision = _purchase(table, product, request, now)
    return replace(decision, mismatch=False) if isinstance(decision, Ignored) else decision


def _rejects_the_retired(
    table: StockTable, product: Product | None, request: PurchaseRequested, now: Millis
) -> AnyDecision:
    if product is None or product.status != "retired":
        return _purchase(table, product, request, now)
    product.status = "closed"
    decision = _purchase(table, product, request, now)
    product.status = "retired"
    return decision


def _sells_the_last_twice(
    table: StockTable, product: Product | None, request: PurchaseRequested, now: Millis
) -> AnyDecision:
    if product is None or product.available:
        return _purchase(table, product, request, now)
    product.available = request.quantity
    decision = _purchase(table, product, request, now)
    product.available = 0
    return decision


def _keeps_the_last(product: Product | None, request: PurchaseRequested, now: Millis) -> str | None:
    last = product is not None and product.available == request.quantity
    return _refusal(product, request, now) or ("sold_out" if last else None)


def _gives_back_double(table: StockTable, product: Product | None, request: ReleaseRequested) -> AnyDecision:
    decision = _release(table, product, request)
    if isinstance(decision, Released):
        return replace(decision, available_after=decision.available_after + decision.quantity)
    return decision


def _applies_double(table: StockTable, decision: Released, position: Position) -> None:
    _apply_released(table, decision, position)
    table.products[decision.product_id].available += decision.quantity


def _remembers_when(table: StockTable, decision: Reserved, position: Position) -> None:
    _apply_reserved(table, decision, position)
    table.products[decision.product_id].answered[RequestId(f"at-{time.time_ns()}")] = None


class SkipsPoison(PartitionProcessor):
    """What cannot be read is passed over."""

    def _answer(
        self, record: Record, requests: list[Raw] | UnreadableMessage, dead_letters: list[DeadLetter]
    ) -> list[AnyDecision]:
        return [] if isinstance(requests, UnreadableMessage) else super()._answer(record, requests, dead_letters)


def _stamps_later(
    offset: int, crc: int, load: WriterEpoch, start: int, at: Millis, decisions: list[AnyDecision]
) -> bytes:
    return encode_decisions(offset, crc, load, start, Millis(at + 1), decisions)


def _whole(value: bytes, known: Headers) -> tuple[bytes, Headers]:
    return value, known


def _unchecked(*_: Any) -> None:
    """In the place of the fold's own check, which would notice at once."""


BUGS: dict[str, Callable[[], None]] = {
    "no check for duplicates": lambda: exchange(domain, _purchase=_forgets_answers),
    "a repeat is never told that its body differs": lambda: exchange(domain, _purchase=_finds_no_difference),
    "a retired product rejects": lambda: exchange(domain, _purchase=_rejects_the_retired),
    "the last unit is sold twice": lambda: exchange(domain, _purchase=_sells_the_last_twice, _check=_unchecked),
    "the last unit is never sold": lambda: exchange(domain, _refusal=_keeps_the_last),
    "a release gives back twice the units": lambda: exchange(
        domain, _release=_gives_back_double, _apply_released=_applies_double, _check=_unchecked
    ),
    "the first copy counts, after a zombie": lambda: exchange(worker, load=partial(load, reader_from=FirstCopyCounts)),
    "a clock in the fold": lambda: exchange(domain, _apply_reserved=_remembers_when),
    "poison is passed over without a decision": lambda: exchange(worker, PartitionProcessor=SkipsPoison),
    "other bytes in the dead letter": lambda: exchange(worker, PartitionProcessor=SendsOtherBytes),
    "a dead letter of any size is sent whole": lambda: exchange(worker, letter=_whole),
    "one load id for all loads": lambda: exchange(worker, token_hex=lambda size: "0" * 2 * size),
    "decisions by another clock": lambda: exchange(protocol, encode_decisions=_stamps_later),
}


def main() -> None:
    """The shipped program with a broken part."""
    plant("inventory", BUGS)
    program.main()


if __name__ == "__main__":
    main()
