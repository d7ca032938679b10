"""The order-writers of the simulated world: the shipped saga over one database, a payment provider and an outbox.

Each step is what the shell does in one transaction or one call, so a crash is the absence of the next step; a COMMIT
whose answer is lost, a second writer, answers that come late and a database restored from a copy are their own.
Cancellations and payment reports come by a topic of their own, which is read in any order with `decisions`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from eventlog.reader import CountingReader, Fenced, Progress
from order_writer.outbox.messages import releases
from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch, Row, entry_of, order_of
from stampede_schemas.codec import decode_decisions
from stampede_schemas.identifiers import Position, PurchaseId
from stampede_schemas.topics import REQUESTS
from tests.simulation.buyers import Buyers, Provider
from tests.simulation.reference import Reference, Violation
from tests.support.fakes.log import MemoryLog

React = Callable[[orders.Purchase, orders.Message], tuple[orders.Effect, ...]]
WRITERS = 2
APPLY, DUE, ANSWERED, HELD, SENDING, KEPT, COMMANDED, PENDING = (1 << n for n in range(13, 21))
NEEDS = {
    "apply": APPLY,
    "pay": DUE,
    "void": DUE,
    "answer": ANSWERED,
    "expire": HELD,
    "command": KEPT,
    "come_back": KEPT,
    "read_command": COMMANDED,
    "sweep": PENDING,
    "relay": SENDING,
    "restore": KEPT,
}


class Payment(NamedTuple):
    """A row of `payments`. `captured`: it is known that money was taken."""

    state: str
    captured: bool = False


class Outgoing(NamedTuple):
    """What one transaction sends: `requests` records, and the version that each changed purchase now has."""

    records: list[bytes]
    events: list[tuple[PurchaseId, int]]


@dataclass
class Database:
    """What a COMMIT makes durable. Values are never changed in place, so a copy is a backup."""

    progress: Progress = field(default_factory=Progress)
    rows: dict[PurchaseId, orders.Purchase] = field(default_factory=dict)
    payments: dict[PurchaseId, Payment] = field(default_factory=dict)
    outbox: dict[int, Outgoing] = field(default_factory=dict)
    commands_read: int = 0
    pending: dict[int, int] = field(default_factory=dict)  # commands that wait, and where `decisions` ended then

    def copy(self) -> "Database":
        """As it is now."""
        return replace(
            self,
            rows=dict(self.rows),
            payments=dict(self.payments),
            outbox=dict(self.outbox),
            pending=dict(self.pending),
        )


class Book:
    """Everything between `decisions` and the releases that come back into `requests`."""

    batch: type[Batch] = Batch

    def __init__(self, log: MemoryLog, react: React, reader: Callable[[Progress], CountingReader], free: bool) -> None:
        self.log, self._react, self._reader, self._free = log, react, reader, free
        self.database, self.provider = Database(), Provider()
        self.buyers = Buyers(log, reader(Progress()), self.provider)
        self.answers: deque[tuple[PurchaseId, orders.Message]] = deque()  # of the provider, on their way
        self.versions: dict[PurchaseId, int] = {}  # published
        self._states: dict[tuple[PurchaseId, int], type[orders.Purchase]] = {}  # by version, since the last restore
        self._writers: list[CountingReader | None] = [None] * WRITERS
        self._backup = Database()
        self._caught_up = 0  # where `decisions` ended when the database was restored
        self._rows_sent = 0
        self.restored = False

    @property
    def behind(self) -> bool:
        """Whether `decisions` holds more than is applied."""
        return self.database.progress.next_offset < len(self.log.decisions)

    @property
    def open(self) -> bool:
        """Whether a writer may pay, expire and publish: not before it has applied what was decided at its start."""
        return self.database.progress.next_offset >= self._caught_up

    def due(self, *states: str) -> list[PurchaseId]:
        """Payments in one of these states."""
        return [purchase_id for purchase_id, payment in self.database.payments.items() if payment.state in states]

    def chances(self) -> int:
        """What could be done now, as bits."""
        return (
            APPLY * self.behind
            | DUE * (self.open and bool(self.database.payments))
            | ANSWERED * bool(self.answers)
            | HELD * (self.open and bool(self.database.rows))
            | SENDING * (self.open and bool(self.database.outbox))
            | COMMANDED * (self.open and self.database.commands_read < len(self.buyers.commands))
            | PENDING * (self.open and bool(self.database.pending))
            | KEPT
        )

    # ---- steps; each says whether it was possible

    def apply(self, amount: int) -> bool:
        """A writer takes in one record or two. Bit 0: which writer; bit 1: two; bit 2: it never hears of its COMMIT."""
        which = amount & 1
        reader = self._writers[which] or self._reader(self.database.progress)
        before = reader.progress
        was = before.next_offset
        batch = self.batch()
        for record in self.log.decisions[was : was + 1 + (amount >> 1 & 1)]:
            read = reader.read(record.offset, record.value)
            if not isinstance(read, Fenced):
                batch.add(0, read.source_offset, decode_decisions(read))
        if reader.progress.next_offset == was:
            return False
        if self.database.progress.next_offset != was:  # the other writer was quicker: this batch is dropped
            self._writers[which] = None
            return True
        self._commit(batch, reader.progress)
        self._writers[which] = self._reader(before) if amount & 4 else reader
        return True

    def pay(self, amount: int) -> bool:
        """The provider is called for a due payment, and decides; its answer is on its way."""
        found = [purchase_id for purchase_id in self.due("due") if isinstance(self._row(purchase_id), orders.Reserved)]
        if not found or not self.open:
            return False
        purchase_id = found[amount % len(found)]
        self.answers.append((purchase_id, self.provider.authorize(purchase_id, willing=amount < 3)))
        return True

    def void(self, amount: int) -> bool:
        """The provider is told to void a payment."""
        found = self.due("void_due")
        if not found or not self.open:
            return False
        purchase_id = found[amount % len(found)]
        known = self.database.payments[purchase_id].captured
        self.provider.void(purchase_id)
        self.answers.append((purchase_id, orders.PaymentVoided(known)))
        return True

    def answer(self, amount: int) -> bool:
        """An answer arrives, or (amount 0) is lost with the process that waited for it."""
        if not self.answers or not self.open:
            return False
        message = self.answers.popleft()
        if amount:
            self._handle([message])
        return True

    def expire(self, amount: int) -> bool:
        """The hold of a purchase has run out."""
        found = [row for row in self.database.rows.values() if isinstance(row, orders.Reserved)]
        if not found or not self.open:
            return False
        self._handle([(found[amount % len(found)].order.purchase_id, orders.HoldExpired())])
        return True

    def command(self, amount: int) -> bool:
        """A buyer who knows of a decision cancels or pays; see `Buyers`. Bit 3: a writer reads it at once."""
        done = self.buyers.command(amount | 2 if self._free else amount)
        while done and amount & 8 and self.read_command(0):
            pass
        return done

    def come_back(self, amount: int) -> bool:
        """Somebody who was rejected tries again; see `Buyers`."""
        return self.buyers.come_back(amount)

    def read_command(self, amount: int) -> bool:
        """A writer reads the next command; it waits if its row is not decided yet."""
        at = self.database.commands_read
        if not self.open or at == len(self.buyers.commands):
            return False
        self.database.commands_read += 1
        self._tell_or_keep(at, len(self.log.decisions))
        return True

    def sweep(self, amount: int) -> bool:
        """The pending commands are tried again. True if one of them is pending no more."""
        pending = self.database.pending
        before = len(pending)
        if self.open:
            for at in list(pending):
                self._tell_or_keep(at, pending.pop(at))
        return len(pending) < before

    def relay(self, amount: int) -> bool:
        """One row of the outbox is sent, not always the oldest; with amount 0 the relay dies before it deletes it."""
        outbox = self.database.outbox
        if not outbox or not self.open:
            return False
        key = list(outbox)[amount % len(outbox)]
        for value in outbox[key].records:
            self.log.append(REQUESTS.name, value, 5_000 + len(self.log.requests))
        for purchase_id, version in outbox[key].events:
            self.versions[purchase_id] = max(self.versions.get(purchase_id, 0), version)
        if amount:
            del outbox[key]
        return True

    def restore(self, amount: int) -> bool:
        """The database is lost; an older copy takes its place. With amount 0 a copy is made."""
        if not amount:
            self._backup = self.database.copy()
            return True
        self.database = self._backup.copy()
        self._caught_up = len(self.log.decisions)
        self._writers = [None] * WRITERS
        self.answers.clear()
        self._states.clear()
        self.restored = True
        return True

    # ---- the end

    def rest(self) -> bool:
        """Do everything that is left to do; the provider is willing in about half of the histories. True if there was
        something."""
        willing = len(self.log.requests) % 2
        steps = (
            self.apply, self.read_command, self.sweep, self.pay, self.answer, self.void, self.answer, self.relay,
            self.expire,
        )  # fmt: skip
        rounds = 0
        while sum(step(3 - willing) for step in steps):
            rounds += 1
        return rounds > 0

    def check(self, reference: Reference) -> None:
        """Every Reserved was sold or given back, the money says the same. Raises Violation."""
        rows = self.database.rows
        for name, held in reference.held.items():
            row = rows.get(PurchaseId(name))
            if row is None or isinstance(row, orders.Rejected | orders.Reserved):
                raise Violation("S5", f"{name} holds {held['at']} in the log, and its row is {row}")
            if held["live"] != isinstance(row, orders.Confirmed):
                raise Violation("S5", f"{name} is {'held' if held['live'] else 'given back'}, and its row is {row}")
            told = (row.order.product_id, row.order.quantity, row.order.reservation)
            if told != (held["product"], held["quantity"], Position(*held["at"])):
                raise Violation("S7", f"{name} is {row.order} in the table, {held} in the log")
        if (
            extra := {name for name, row in rows.items() if not isinstance(row, orders.Rejected)}
            - reference.held.keys()
        ):
            raise Violation("S7", f"{sorted(extra)} have rows and no reservation")
        self._check_money()
        for at in self.buyers.cancelled:
            name, _ = self.buyers.commands[at]
            if not isinstance(rows[name], orders.Released):
                raise Violation("command", f"{name} was cancelled, and its row is {rows[name]}")
        for name, row in rows.items():
            if row.version > 2 and not self.restored and self.versions.get(name) != row.version:
                raise Violation("S10", f"{name} has version {row.version}, {self.versions.get(name)} was published")

    def _check_money(self) -> None:
        if self._free:
            return
        for name, row in self.database.rows.items():
            if isinstance(row, orders.Released) and row.refund == "due":
                raise Violation("S21", f"{name} waits for its refund for ever")
        sold = {name for name, row in self.database.rows.items() if isinstance(row, orders.Confirmed)}
        kept = self.provider.captured - self.provider.refunded
        if sold != kept:
            raise Violation("S21", f"money was kept for {sorted(kept - sold)}, and not taken for {sorted(sold - kept)}")

    # ---- what a transaction does

    def _row(self, purchase_id: PurchaseId) -> orders.Purchase | None:
        return self.database.rows.get(purchase_id)

    def _commit(self, batch: Batch, to: Progress) -> None:
        """See `order_writer.consume.decisions.apply`: outcomes become rows, and the saga handles the rest."""
        messages: list[tuple[PurchaseId, orders.Message]] = []
        sold: list[orders.Effect] = []
        for row in [*batch.rows.values(), *batch.again]:
            known = self._row(row.purchase_id)
            if known is None or not self._stands(known, row):
                state, effects = self._outcome(row)
                self._put(row.purchase_id, state)
                sold += effects
                if isinstance(state, orders.Reserved):
                    if row.purchase_id in self.database.payments:  # voided before it came
                        messages.append((row.purchase_id, orders.PaymentDeclined()))
                    else:
                        self.database.payments[row.purchase_id] = Payment("due")
            elif row.status == "reserved" and not isinstance(known, orders.Rejected) and known.order != order_of(row):
                raise Violation("S9", f"{row.purchase_id} is reserved at {row.position}, and is {known}")
        self._handle(messages + batch.later, sold)
        self.database.progress = to

    def _stands(self, known: orders.Purchase, row: Row) -> bool:
        """Whether a row keeps its place."""
        return not (isinstance(known, orders.Rejected) and row.status == "reserved")

    def _outcome(self, row: Row) -> tuple[orders.Purchase, tuple[orders.Effect, ...]]:
        """The state of a new row, and of one that takes the place of a rejection, with its effects."""
        entry = entry_of(row, 0, orders.NothingToPay() if self._free else None)
        return entry.state, entry.effects

    def _put(self, purchase_id: PurchaseId, state: orders.Purchase) -> None:
        """Write a row. Its version never falls, and no version has two states."""
        known = self._row(purchase_id)
        told = self._states.setdefault((purchase_id, state.version), type(state))
        if told is not type(state) or (known is not None and known.version > state.version):
            raise Violation("S10", f"{purchase_id} went from {known} to {state}")
        self.database.rows[purchase_id] = state

    def _waits(self, row: orders.Purchase | None, end: int) -> bool:
        """Whether a command has to wait that was read when `decisions` ended at `end`; see `commands.TAKE_DECIDED`."""
        behind = self.database.progress.next_offset < end
        return row is None or (isinstance(row, orders.Rejected) and behind)

    def _tell_or_keep(self, at: int, end: int) -> None:
        purchase_id, message = self.buyers.commands[at]
        row = self._row(purchase_id)
        if self.restored and isinstance(message, orders.PaymentApproved) and purchase_id in self.provider.refunded:
            return  # a known limit (ADR 7): the copy does not know of the refund, and this report would sell
        if self._waits(row, end):
            self.database.pending[at] = end
        elif at in self.buyers.cancelled and isinstance(row, orders.Rejected):
            raise Violation(
                "command", f"{purchase_id} is cancelled by a buyer who knows of its reservation, and is {row}"
            )
        else:
            self._handle([(purchase_id, message)])

    def _handle(self, messages: list[tuple[PurchaseId, orders.Message]], sold: Iterable[orders.Effect] = ()) -> None:
        """See `order_writer.unit_of_work.UnitOfWork.handle`."""
        back: list[orders.RequestRelease] = []
        events = [(it.state.order.purchase_id, it.state.version) for it in sold if isinstance(it, orders.Transition)]
        for purchase_id, message in messages:
            row = self._row(purchase_id)
            if row is None:
                continue
            self._voided(purchase_id, message)
            effects = self._react(row, message)
            now = orders.evolve(row, effects)
            if isinstance(row, orders.Released) and not isinstance(now, orders.Released):
                raise Violation("S10", f"{purchase_id} went from {row} back to {now}")
            self._put(purchase_id, now)
            for effect in effects:
                match effect:
                    case orders.Transition(state):
                        events.append((purchase_id, state.version))
                    case orders.RequestRelease():
                        back.append(effect)
                    case _:
                        self._pay(purchase_id, effect)
        if back or events:
            self._rows_sent += 1
            self.database.outbox[self._rows_sent] = Outgoing([record.value for record in releases(back)], events)

    def _pay(self, purchase_id: PurchaseId, effect: orders.Effect) -> None:
        payments = self.database.payments
        known = payments.get(purchase_id)
        match effect:
            case orders.Void(captured):
                payments[purchase_id] = Payment("void_due", captured or (known is not None and known.captured))
            case orders.KeepApproval() if known is not None:
                payments[purchase_id] = Payment("approved", captured=True)
            case orders.KeepCapture() if known is not None:
                payments[purchase_id] = Payment(known.state, captured=True)

    def _voided(self, purchase_id: PurchaseId, message: orders.Message) -> None:
        known = self.database.payments.get(purchase_id)
        if known is None or known.state != "void_due" or not isinstance(message, orders.PaymentVoided):
            return
        if message.captured or not known.captured:
            self.database.payments[purchase_id] = Payment("voided", known.captured)
