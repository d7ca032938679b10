"""The other side of the order-writers: buyers who were told of a decision and pay or cancel, and the provider."""

from eventlog.reader import CountingReader, Fenced
from order_writer.saga import orders
from order_writer.saga.decision_batch import Batch, Row
from stampede_schemas.codec import decode_decisions, encode_requests
from stampede_schemas.identifiers import PurchaseId
from stampede_schemas.topics import REQUESTS
from tests.support.builders.requests import purchase
from tests.support.fakes.log import MemoryLog


class Provider:
    """Takes money and gives it back, both once; its void is sticky. Its books are what S21 is checked against."""

    def __init__(self) -> None:
        self.captured: set[PurchaseId] = set()
        self.declined: set[PurchaseId] = set()
        self.refunded: set[PurchaseId] = set()
        self.voided: set[PurchaseId] = set()

    def authorize(self, purchase_id: PurchaseId, *, willing: bool) -> orders.Message:
        """The same answer whenever it is asked again."""
        if purchase_id not in self.captured | self.declined | self.voided:
            (self.captured if willing else self.declined).add(purchase_id)
        taken = purchase_id in self.captured - self.voided
        return orders.PaymentApproved() if taken else orders.PaymentDeclined()

    def void(self, purchase_id: PurchaseId) -> None:
        """Refund what was captured, and capture nothing from now on."""
        self.voided.add(purchase_id)
        self.refunded |= self.captured & {purchase_id}


class Buyers:
    """A gateway tells them what counts in `decisions`, which it reads by itself; their commands are a topic."""

    def __init__(self, log: MemoryLog, reader: CountingReader, provider: Provider) -> None:
        self._log, self._reader, self._provider = log, reader, provider
        self._told: dict[PurchaseId, Row] = {}
        self.commands: list[tuple[PurchaseId, orders.Message]] = []
        self.cancelled: set[int] = set()  # the commands that cancel what their sender was told to have reserved

    def command(self, amount: int) -> bool:
        """One of them cancels (bit 1; bit 0: an operator does it) or pays (bit 0: in vain). Bit 2: not the last one."""
        self._read_on()
        if not self._told:
            return False
        row = list(self._told.values())[-1 - bool(amount & 4) % len(self._told)]
        if amount & 2:
            message: orders.Message = orders.CancelAsked("operator" if amount & 1 else row.decision.buyer_id)
            if row.status == "reserved":
                self.cancelled.add(len(self.commands))
        else:
            message = self._provider.authorize(row.purchase_id, willing=not amount & 1)
        self.commands.append((row.purchase_id, message))
        return True

    def come_back(self, amount: int) -> bool:
        """One of them was rejected, and asks for one unit under the same key."""
        self._read_on()
        found = [row for row in self._told.values() if row.status == "rejected"]
        if not found:
            return False
        row = found[amount % len(found)]
        request = purchase(row.purchase_id, row.decision.buyer_id, 1, row.decision.product_id)
        self._log.append(REQUESTS.name, encode_requests([request]), 7_000 + len(self._log.requests))
        return True

    def _read_on(self) -> None:
        for record in self._log.decisions[self._reader.progress.next_offset :]:
            read = self._reader.read(record.offset, record.value)
            if not isinstance(read, Fenced):
                batch = Batch()
                batch.add(0, read.source_offset, decode_decisions(read))
                for name, row in batch.rows.items():
                    self._told.pop(name, None)
                    self._told[name] = row  # the last one told of is the likeliest to do something
