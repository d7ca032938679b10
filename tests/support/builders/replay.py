"""A small sale as the checker sees it, decided by the real rules, ended as by the order-writer; to be tampered with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from inventory.domain import decide, evolve
from inventory.table import REJECTED_GENERATION, StockTable
from replay import salefile
from replay.evidence import (
    Applied,
    Canaries,
    Catalogued,
    CommandRecord,
    Database,
    Evidence,
    Letter,
    Partition,
    Payment,
    Record,
    Row,
    State,
)
from replay.journal import Attempt, Journal, Limits, Told
from stampede_schemas.codec import (
    UnreadableMessage,
    decode_request,
    encode,
    encode_decisions,
    encode_requests,
    source_crc,
    split_requests,
)
from stampede_schemas.decisions import AnyDecision, Rejected, Released, Reserved, Unreadable
from stampede_schemas.identifiers import Millis, Position, WriterEpoch
from stampede_schemas.order_commands import AnyCommand
from stampede_schemas.requests import AnyRequest
from tests.support.builders.requests import listing, purchase

BEGAN_MS = 1_700_000_000_000
LATER_MS = 120_000  # everything that was to happen has had the time to


class SmallSale:
    """One partition. `ask` logs requests and their decisions; `evidence` is what a checker would gather of it.

    `generation`: how many rejections make a generation of the fold's memory.
    """

    def __init__(self, partition: int = 0, generation: int = REJECTED_GENERATION) -> None:
        self.partition = partition
        self.table = StockTable(partition, generation=generation)
        self.requests: list[Record] = []
        self.decisions: list[Record] = []
        self.letters: list[Letter] = []
        self.commands: list[CommandRecord] = []
        self.decided: list[tuple[Position, AnyDecision]] = []
        self._load, self._start, self._loads = "", 0, 0
        self.take_over()

    def take_over(self) -> None:
        """Another worker loads the partition."""
        self._loads += 1
        self._load, self._start = f"{self._loads:032x}", len(self.decisions)

    def ask(self, *requests: AnyRequest) -> int:
        """Log one record and its answer; its offset."""
        return self.log(encode_requests(list(requests)))

    def log(self, value: bytes | None) -> int:
        """Log any bytes, as a record, and the answer."""
        offset, now = len(self.requests), BEGAN_MS + 10 * len(self.requests)
        self.requests.append(Record(offset, now, value))
        answers = self._answers(offset, value, now)
        record = encode_decisions(
            offset,
            source_crc(value),
            WriterEpoch(self._load),
            self._start,
            Millis(now),
            [answer for _, answer in answers],
        )
        self.decisions.append(Record(len(self.decisions), now + 5, record))
        self.decided += answers
        return offset

    def command(self, command: AnyCommand) -> None:
        """Put a command into the log, which is carried out by what is asked next."""
        self.commands.append(CommandRecord(self.partition, len(self.commands), BEGAN_MS, encode(command)))

    def void(self) -> None:
        """A record of a worker that was overtaken lands late."""
        late = json.loads(self.decisions[-1].value or b"")
        self.decisions.append(Record(len(self.decisions), BEGAN_MS, json.dumps(late | {"load": "f" * 32}).encode()))
        self.take_over()

    def _answers(self, offset: int, value: bytes | None, now: int) -> list[tuple[Position, AnyDecision]]:
        try:
            raws = split_requests(value)
        except UnreadableMessage as unreadable:
            return [self._dead_letter(offset, 0, unreadable, value or b"")]
        answers: list[tuple[Position, AnyDecision]] = []
        for index, raw in enumerate(raws):
            try:
                decision = decide(self.table, decode_request(raw), Millis(now))
            except UnreadableMessage as unreadable:
                answers.append(self._dead_letter(offset, index, unreadable, bytes(raw)))
                continue
            position = Position(self.partition, offset, index)
            if isinstance(decision, Unreadable):
                answers.append(self._dead_letter(offset, index, UnreadableMessage(decision.reason), bytes(raw)))
                continue
            evolve(self.table, decision, position)
            answers.append((position, decision))
        return answers

    def _dead_letter(
        self, offset: int, index: int, why: UnreadableMessage, value: bytes
    ) -> tuple[Position, AnyDecision]:
        source = f"requests/{self.partition}/{offset}/{index}"
        self.letters.append(Letter(0, len(self.letters), BEGAN_MS, source, why.reason, value))
        return Position(self.partition, offset, index), Unreadable(reason=why.reason)

    def evidence(self) -> Evidence:
        """Log, rows, tables and a journal that all agree."""
        now = BEGAN_MS + 10 * len(self.requests) + LATER_MS
        table = msgspec.json.decode(msgspec.json.encode(self.table), type=StockTable)
        return Evidence(
            {self.partition: Partition(self.partition, list(self.requests), list(self.decisions))},
            now,
            "a small sale",
            letters=list(self.letters),
            orders=[],
            database=self._database(now),
            states=[State(self.partition, len(self.requests) - 1, table.digest())],
            journal=self._journal(),
            payments=self._payments(),
            canaries=Canaries([(b"never-there@example.org",)], []),
            generation=self.table.generation,
            commands=list(self.commands),
        )

    def _database(self, now: int) -> Database:
        rows: dict[str, Row] = {}
        for position, decision in self.decided:
            if isinstance(decision, Reserved):
                rows[decision.purchase_id] = _row(position, decision)
            elif isinstance(decision, Rejected):
                rows.setdefault(decision.purchase_id, _row(position, decision))
            elif isinstance(decision, Released):
                old = rows[decision.purchase_id]
                rows[decision.purchase_id] = old._replace(
                    status="released", reason=decision.reason, returned=True, version=old.version + 1
                )
        products = {
            name: Catalogued(product.stock, product.available, self.partition)
            for name, product in self.table.products.items()
        }
        applied: dict[int, Applied] = {}
        if self.decided:
            last = Partition(self.partition, decisions=self.decisions).counting[-1]
            applied[self.partition] = Applied(len(self.decisions), last.source_offset, last.load, last.offset)
        return Database(now, rows, {str(name): found for name, found in products.items()}, applied)

    def _payments(self) -> list[Payment]:
        facts: list[tuple[str, str, int, str]] = []
        for _, decision in self.decided:
            paid = [fact for fact in facts if fact[:2] == ("captured", getattr(decision, "purchase_id", ""))]
            if isinstance(decision, Reserved) and not paid:
                price = decision.unit_price_minor * decision.quantity
                facts.append(("captured", decision.purchase_id, price, decision.currency))
            elif isinstance(decision, Released) and paid:
                facts += [("refunded", *paid[0][1:]), ("voided", decision.purchase_id, 0, "")]
        return [Payment(line, BEGAN_MS, *fact) for line, fact in enumerate(facts, 1)]

    def _journal(self) -> Journal:
        outcomes = [decision for _, decision in self.decided if isinstance(decision, Reserved | Rejected)]
        told = {decision.purchase_id: decision for decision in outcomes}.values()
        attempts = [
            Attempt(decision.buyer_id, f"key-{line}", decision.purchase_id, "", answers=_accepted(decision), line=line)
            for line, decision in enumerate(told, 2)
        ]
        product = next((str(name) for name in self.table.products), "")
        return Journal(product, attempts, Limits("user:token_bucket:5/s,user:sliding_window:60/min"))


def exported_sale(folder: Path) -> Path:
    """A small sale that holds, as a file in this folder."""
    small = SmallSale()
    small.ask(listing(stock=1))
    small.ask(purchase("a"), purchase("b", "bob"))
    salefile.write(folder / "sale.jsonl", small.evidence())
    return folder / "sale.jsonl"


def _accepted(decision: Reserved | Rejected) -> list[Told]:
    return [Told(202, json.dumps({"purchase_id": decision.purchase_id, "status": "pending"}).encode())] * 2


def _row(position: Position, decision: Reserved | Rejected) -> Row:
    reserved = decision if isinstance(decision, Reserved) else None
    return Row(
        purchase_id=decision.purchase_id,
        buyer_id=decision.buyer_id,
        product_id=decision.product_id,
        quantity=decision.quantity,
        status="confirmed" if reserved else "rejected",
        reason=decision.reason if isinstance(decision, Rejected) else None,
        reservation_no=reserved.reservation_no if reserved else None,
        unit_price_minor=reserved.unit_price_minor if reserved else None,
        currency=reserved.currency if reserved else None,
        payment_method=decision.payment_method,
        fingerprint=decision.fingerprint,
        place=(position.partition, position.offset, position.index),
        hold_until_ms=BEGAN_MS + reserved.hold_ms if reserved else None,
        returned=False,
        version=3 if reserved else 1,
        created_at_ms=BEGAN_MS,
        updated_at_ms=BEGAN_MS,
    )


def edit(evidence: Evidence, offset: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a decisions record as if it had been written so."""
    partition = next(iter(evidence.partitions.values()))
    record = partition.decisions[offset]
    content = json.loads(record.value or b"")
    change(content)
    partition.decisions[offset] = record._replace(value=json.dumps(content).encode())


def rewrite(evidence: Evidence, offset: int, index: int = 0, **fields: object) -> None:
    """Change fields of one decision."""
    edit(evidence, offset, lambda content: content["decisions"][index].update(fields))


def change_row(evidence: Evidence, purchase_id: str, **fields: Any) -> None:
    """Change columns of a row."""
    assert evidence.database is not None
    rows = dict(evidence.database.rows)
    rows[purchase_id] = rows[purchase_id]._replace(**fields)
    evidence.database = replace(evidence.database, rows=rows)


def invent_row(evidence: Evidence, like: str, purchase_id: str, **fields: Any) -> None:
    """A row that nobody's request made."""
    assert evidence.database is not None
    row = evidence.database.rows[like]._replace(purchase_id=purchase_id, **fields)
    evidence.database = replace(evidence.database, rows=evidence.database.rows | {purchase_id: row})


def drop_row(evidence: Evidence, purchase_id: str) -> None:
    """A row is lost."""
    assert evidence.database is not None
    rows = {key: row for key, row in evidence.database.rows.items() if key != purchase_id}
    evidence.database = replace(evidence.database, rows=rows)
