"""What Stampede answers, as frozen structs. Unknown fields are ignored: the server may learn more."""

from datetime import datetime
from typing import Any, Literal

import msgspec

PurchaseStatus = Literal["pending", "reserved", "confirmed", "rejected", "released"]
SaleStatus = Literal["upcoming", "open", "paused", "sold_out", "closed"]


class Price(msgspec.Struct, frozen=True):
    """Minor units (cents, say) of `currency`."""

    unit_minor: int
    total_minor: int
    currency: str


class Purchase(msgspec.Struct, frozen=True):
    """A purchase as of `version`. A `pending` one may know no more than its id."""

    purchase_id: str
    status: PurchaseStatus
    version: int = 0
    product_id: str | None = None
    quantity: int | None = None
    reason: str | None = None
    price: Price | None = None
    hold_until: datetime | None = None
    changed_at: datetime | None = None
    refund: Literal["none", "due", "done"] = "none"
    trace_id: str | None = None

    @property
    def open(self) -> bool:
        """Whether something is still on its way."""
        return self.status in ("pending", "reserved") or self.refund == "due"


class Product(msgspec.Struct, frozen=True):
    """A product and what is left of it; `may_reopen`: units on hold may come back."""

    product_id: str
    name: str
    status: SaleStatus
    available: int
    may_reopen: bool
    unit_price_minor: int
    currency: str
    per_buyer_limit: int
    server_time: datetime
    opens_at: datetime | None = None
    closes_at: datetime | None = None


class Page(msgspec.Struct, frozen=True):
    """A page of purchases."""

    purchases: list[Purchase]
    next_cursor: str | None


class Catalogue(msgspec.Struct, frozen=True):
    """All products."""

    products: list[Product]


class Refused(Exception):
    """Stampede said no. `kind` is the stable word for why (`sold-out`, `rejected` …), `problem` the whole document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.kind = str(problem.get("type", "")).rpartition("/")[2] or "unknown"
        self.retryable = problem.get("retryable") is True
        self.problem = problem
        super().__init__(f"{self.kind}: {problem.get('detail', f'status {status}')}")


class Unreachable(Exception):
    """No answer to any attempt. What became of a purchase is unknown: send the same key again."""
