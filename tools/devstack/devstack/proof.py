"""What happened in a sale, read from the log, the database and the workers' tables, and whether they agree.

The counts and sums are made here, from the records themselves; only the live table is compared with a fold by the
inventory's own rules, because equality of tables is what is claimed.
"""

import asyncio
import json
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec

from devstack.crowd import Journal
from devstack.endpoints import Endpoints
from eventlog.kafka import consumer, read_range, watermarks
from eventlog.reader import CountingReader
from inventory.loading import Folded, Record, fold
from inventory.table import StockTable
from stampede_schemas.decisions import Ignored, ProductListed, Rejected, Released, Reserved, Restocked
from stampede_schemas.identifiers import Millis
from stampede_schemas.topics import DECISIONS, partition_of

SETTLE_S = 30.0
POLL_S = 0.2


@dataclass(slots=True)
class LogView:
    """One product as its partition of `decisions` tells it. Purchases are by id, with the position of the request."""

    listed: int = 0
    available: int = 0
    lowest: int = 0
    reserved: dict[str, tuple[int, int]] = field(default_factory=dict)
    released: dict[str, str] = field(default_factory=dict)
    rejected: set[str] = field(default_factory=set)
    repeats: int = 0
    void: int = 0
    source_offset: int = -1
    digest: str = ""


@dataclass(slots=True)
class Proof:
    """The findings: a value for each line of the table, and a sentence for each thing that is wrong."""

    log: LogView = field(default_factory=LogView)
    rows: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    last_durable_s: float = 0.0

    @property
    def confirmed(self) -> int:
        """Units sold, by the database."""
        return sum(row["quantity"] for row in self.rows.values() if row["status"] == "confirmed")

    @property
    def held(self) -> int:
        """Units reserved and not yet decided."""
        return sum(row["quantity"] for row in self.rows.values() if row["status"] == "reserved")


async def prove(endpoints: Endpoints, journal: Journal) -> Proof:
    """Wait until log and database have come to rest (at most 30 s), then compare everything."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        proof = await _look(endpoints, journal)
        if not proof.wrong or time.monotonic() > deadline:
            return proof
        await asyncio.sleep(POLL_S)


async def _look(endpoints: Endpoints, journal: Journal) -> Proof:
    product = journal.sale.product_id
    proof = Proof(log=await asyncio.to_thread(_read_log, endpoints.kafka, product))
    connection = await asyncpg.connect(endpoints.postgres)
    try:
        rows = await connection.fetch("SELECT * FROM purchases WHERE product_id = $1", product)
        shown = await connection.fetchrow("SELECT available, stock FROM products WHERE product_id = $1", product)
    finally:
        await connection.close()
    proof.rows = {row["purchase_id"]: row for row in rows}
    confirmed_at = [row["updated_at"].timestamp() for row in rows if row["status"] == "confirmed"]
    proof.last_durable_s = max(confirmed_at, default=journal.began_at) - journal.began_at
    _compare_stock(proof, journal, shown)
    _compare_rows(proof)
    _compare_journal(proof, journal)
    await asyncio.to_thread(_compare_table, proof, endpoints, product)
    return proof


def _read_log(kafka: str, product_id: str) -> LogView:
    partition = partition_of(product_id)
    view, table, reader = LogView(), StockTable(partition), CountingReader()
    client = consumer(kafka, **{"fetch.wait.max.ms": 10})
    try:
        _, end = watermarks(client, DECISIONS.name, partition)
        for message in read_range(client, DECISIONS.name, partition, 0, end):
            record = Record(message.offset() or 0, message.value(), Millis(0))
            found = fold(table, reader, record)
            if isinstance(found, Folded):
                _tell(view, found, product_id)
            else:
                view.void += 1
    finally:
        client.close()
    view.source_offset = reader.progress.source_offset
    # The worker's table may have come through a snapshot, this one through the log: compare their wire forms.
    view.digest = msgspec.json.decode(msgspec.json.encode(table), type=StockTable).digest()
    return view


def _tell(view: LogView, folded: Folded, product_id: str) -> None:
    for index, decision in enumerate(folded.decisions):
        if getattr(decision, "product_id", None) != product_id:
            continue
        match decision:
            case ProductListed():
                view.listed = view.available = view.lowest = decision.stock
            case Restocked():
                view.listed += decision.quantity
                view.available += decision.quantity
            case Reserved():
                view.available -= decision.quantity
                view.reserved[decision.purchase_id] = (folded.envelope.source_offset, index)
            case Released():
                view.available += decision.quantity
                view.released[decision.purchase_id] = decision.reason
            case Rejected():
                view.rejected.add(decision.purchase_id)
            case Ignored(reason="answered"):
                view.repeats += 1
        view.lowest = min(view.lowest, view.available)


def _compare_stock(proof: Proof, journal: Journal, shown: Any) -> None:
    log, wrong = proof.log, proof.wrong
    if log.listed != journal.sale.units:
        wrong.append(f"the log lists {log.listed} units, not {journal.sale.units}")
    if log.lowest < 0:
        wrong.append(f"oversold: the stock in the log fell to {log.lowest}")
    if (over := proof.confirmed + proof.held - log.listed) > 0:
        wrong.append(f"oversold by {over}: {proof.confirmed} confirmed and {proof.held} held of {log.listed}")
    if proof.held:
        wrong.append(f"{proof.held} units are still reserved: neither sold nor given back")
    if shown is None or shown["available"] != log.available:
        wrong.append(
            f"the catalogue in Postgres shows {shown and shown['available']} available, the log {log.available}"
        )


def _compare_rows(proof: Proof) -> None:
    """Every decided purchase has its row, at the same position, with the same outcome, and no row is invented."""
    log, wrong = proof.log, proof.wrong
    for purchase_id, position in log.reserved.items():
        row = proof.rows.get(purchase_id)
        if row is None:
            wrong.append(f"purchase {purchase_id} is reserved in the log and has no row")
        elif (row["source_offset"], row["source_index"]) != position:
            wrong.append(f"purchase {purchase_id} stands at {position} in the log and has another position in its row")
        elif (row["status"] == "released") != (purchase_id in log.released):
            wrong.append(f"purchase {purchase_id} is {row['status']} in its row; the log says otherwise")
        elif row["status"] == "released" and row["stock_returned_at"] is None:
            wrong.append(f"purchase {purchase_id} is released and its units are not marked as returned")
    if missing := (log.reserved.keys() | log.rejected) - proof.rows.keys():
        wrong.append(f"{len(missing)} decided purchases have no row")
    if invented := proof.rows.keys() - (log.reserved.keys() | log.rejected):
        wrong.append(f"{len(invented)} rows have no decision in the log")


def _compare_journal(proof: Proof, journal: Journal) -> None:
    """Nobody was told anything that the database does not say, and every key had one outcome."""
    wrong = proof.wrong
    for attempt in journal.logged:
        row = proof.rows.get(attempt.purchase_id)
        if row is None:
            wrong.append(f"purchase {attempt.purchase_id} was accepted over HTTP and has no row")
        elif attempt.outcome != "unanswered" and row["status"] != attempt.outcome:
            wrong.append(
                f"purchase {attempt.purchase_id}: buyer was told {attempt.outcome}, the row says {row['status']}"
            )
    ids = [attempt.purchase_id for attempt in journal.logged]
    if len(set(ids)) != len(ids):
        wrong.append("two keys were given one purchase id")
    for attempt in journal.attempts:
        told = {json.loads(body)["purchase_id"] for status, body in attempt.answers if status in {201, 202}}
        if len(told) > 1:
            wrong.append(f"the same key was given {len(told)} purchases")


def _compare_table(proof: Proof, endpoints: Endpoints, product_id: str) -> None:
    """The table of the worker that owns the product's partition is the fold of the log."""
    for process in endpoints.processes["inventory"]:
        try:
            url = f"{process['ops']}/state?partition={partition_of(product_id)}"
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own loopback listener
                state = json.loads(answer.read())
        except OSError:
            continue
        if state["source_offset"] != proof.log.source_offset:
            proof.wrong.append("requests are still being decided")
        elif state["sha256"] != proof.log.digest:
            proof.wrong.append("the table of the inventory is not the fold of the log")
        return
    proof.wrong.append("no inventory worker answers for the product's partition")
