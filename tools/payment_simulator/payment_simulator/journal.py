"""The simulated provider's own books: one file that all writers of a stack append to, and that outlives each of them.

One JSON line per fact, in the order in which things happened: `captured` and `refunded` with amount and currency,
`voided` with 0. What it says is what the provider knows: captures are idempotent and voids sticky across restarts and
writers because every call first reads what others have appended. The checker judges by this file alone (rule S21).
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from stampede_schemas.identifiers import Millis, PurchaseId

LOCK_WAIT_S_MAX = 1.0
LOCK_LOOK_S = 0.002
READ_BYTES_MAX = 1_048_576


class Fact(msgspec.Struct, frozen=True):
    """One line."""

    at_ms: Millis
    event: str
    purchase_id: PurchaseId
    amount_minor: int
    currency: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Fact).decode


class Journal:
    """The books, in memory as well (some 200 bytes a purchase). Without a path they end with the process."""

    def __init__(self, path: str = "") -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600) if path else -1
        self._read_to = 0
        self._captured: dict[PurchaseId, Fact] = {}
        self._voided: set[PurchaseId] = set()

    async def capture(self, purchase_id: PurchaseId, amount_minor: int, currency: str) -> bool:
        """Take the money unless it is taken already; False when that was forbidden."""
        async with self._alone():
            if purchase_id in self._voided:
                return False
            if purchase_id in self._captured:
                return True
            self._append(Fact(_now_ms(), "captured", purchase_id, amount_minor, currency))
            return True

    async def void(self, purchase_id: PurchaseId) -> None:
        """Give back what was taken, and forbid every later capture; once."""
        async with self._alone():
            if purchase_id in self._voided:
                return
            facts = [Fact(_now_ms(), "voided", purchase_id, 0, "")]
            if (taken := self._captured.get(purchase_id)) is not None:
                facts.insert(0, Fact(_now_ms(), "refunded", purchase_id, taken.amount_minor, taken.currency))
            self._append(*facts)

    async def holds(self, purchase_id: PurchaseId) -> bool:
        """Whether money was taken and not given back."""
        async with self._alone():
            return purchase_id in self._captured and purchase_id not in self._voided

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold the file and know everything in it. Inside nothing may be awaited.

        Raises:
            TimeoutError: another process holds it; it may be frozen, and must not freeze this one.
        """
        if self._file < 0:
            yield
            return
        deadline = time.monotonic() + LOCK_WAIT_S_MAX
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process holds the payment journal") from None
                await asyncio.sleep(LOCK_LOOK_S)
        try:
            self._read_on()
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _append(self, *facts: Fact) -> None:
        if self._file >= 0:
            lines = b"".join(_encode(fact) + b"\n" for fact in facts)
            if os.write(self._file, lines) != len(lines):
                raise OSError("the payment journal could not be written whole")
            self._read_on()
        else:
            for fact in facts:
                self._learn(fact)

    def _read_on(self) -> None:
        while found := os.pread(self._file, READ_BYTES_MAX, self._read_to):
            whole = found.rfind(b"\n") + 1
            if not whole:  # its writer died in the middle: what comes next begins a line of its own
                os.write(self._file, b"\n")
                continue
            self._read_to += whole
            for line in found[:whole].splitlines():
                try:
                    self._learn(_decode(line))
                except msgspec.DecodeError:
                    continue  # half a line: that call was never answered

    def _learn(self, fact: Fact) -> None:
        if fact.event == "captured":
            self._captured.setdefault(fact.purchase_id, fact)
        else:  # a refund whose void was cut off by a full disk forbids captures as well
            self._voided.add(fact.purchase_id)


def _now_ms() -> Millis:
    return Millis(time.time_ns() // 1_000_000)
