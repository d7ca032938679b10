"""The stock table of one partition: what the fold of `decisions` remembers. Data and its canonical form, no rules."""

from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct, field

from stampede_schemas.decisions import ProductListed, ProductStatus
from stampede_schemas.identifiers import BuyerId, Millis, Position, ProductId, PurchaseId, RequestId

# Rejected purchases of one generation; two generations are remembered. It never changes in the life of a log: tables
# that forget at different points would answer differently.
REJECTED_GENERATION = 250_000
FINGERPRINT_KEPT = 16  # characters of a rejected purchase's fingerprint: 8 bytes in hex
OPERATOR_REQUESTS_MAX = 1_000  # request_ids remembered per product
SLICE_FORM = 2  # of the pieces of a snapshot; a snapshot of another form is left aside, and the log folded instead
SLICE_WEIGHT_MAX = 2_000  # entries in one snapshot part, a product counting for more: plain ones are some 400 KiB
SLICE_BYTES_MAX = 512 * 1024  # of a part: half of what Kafka takes; a single entry has at most a quarter of it


# Where a rejected purchase was asked for (offset, index), and the beginning of its fingerprint.
Rejection = tuple[int, int, str]


class Reservation(Struct, gc=False, array_like=True):
    """Stock held for a purchase, live until released. Its position is (partition of the table, offset, index)."""

    product_id: ProductId
    buyer_id: BuyerId
    quantity: int
    payment_method: str
    fingerprint: str
    offset: int
    index: int
    live: bool


class Product(Struct):
    """One product. `available + reserved == stock` (listed + restocked) at every point of the log."""

    listed: ProductListed
    unit_price_minor: int
    per_buyer_limit: int
    hold_ms: int
    status: ProductStatus
    opens_at_ms: Millis | None
    closes_at_ms: Millis | None
    stock: int
    available: int
    reserved: int = 0
    next_reservation_no: int = 1
    held_by: dict[BuyerId, int] = field(default_factory=dict)  # units live per buyer
    answered: dict[RequestId, None] = field(default_factory=dict)  # operator requests, oldest first


class StockTable(Struct):
    """Everything about the products of one partition.

    `purchases` holds every purchase that ever held units, live or ended, until its product is retired. `rejected` and
    `rejected_before` are two generations of rejections; `generation` is the size of one (tests take smaller ones).
    """

    partition: int
    products: dict[ProductId, Product] = field(default_factory=dict)
    purchases: dict[PurchaseId, Reservation] = field(default_factory=dict)
    rejected: dict[PurchaseId, Rejection] = field(default_factory=dict)
    rejected_before: dict[PurchaseId, Rejection] = field(default_factory=dict)
    generation: int = REJECTED_GENERATION

    def size(self) -> int:
        """How many things it remembers: the work of writing it down."""
        return len(self.products) + len(self.purchases) + len(self.rejected) + len(self.rejected_before)

    def answered(self, purchase_id: PurchaseId, fingerprint: str) -> tuple[Position, bool] | None:
        """Where this purchase was answered first, if that is remembered, and whether its body was another one then."""
        if (held := self.purchases.get(purchase_id)) is not None:
            return Position(self.partition, held.offset, held.index), held.fingerprint != fingerprint
        first = self.rejected.get(purchase_id) or self.rejected_before.get(purchase_id)
        if first is None:
            return None
        offset, index, known = first
        return Position(self.partition, offset, index), known != fingerprint[:FINGERPRINT_KEPT]

    def remember_rejected(self, purchase_id: PurchaseId, offset: int, index: int, fingerprint: str) -> None:
        """Keep the newest 250,000 to 500,000 rejections; the oldest generation is forgotten at once."""
        if len(self.rejected) >= self.generation:
            self.rejected_before, self.rejected = self.rejected, {}
        self.rejected[purchase_id] = (offset, index, fingerprint[:FINGERPRINT_KEPT])

    def forget_purchases_of(self, product_id: ProductId) -> None:
        """Drop a retired product's reservations from memory."""
        self.purchases = {key: held for key, held in self.purchases.items() if held.product_id != product_id}

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form: equal tables, equal digests, whatever the order of dicts."""
        return sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Slice(Struct, omit_defaults=True):
    """A piece of a table, small enough for one Kafka record. Pieces add up in any order."""

    products: dict[ProductId, Product] = field(default_factory=dict)
    purchases: dict[PurchaseId, Reservation] = field(default_factory=dict)
    rejected: dict[PurchaseId, Rejection] = field(default_factory=dict)
    rejected_before: dict[PurchaseId, Rejection] = field(default_factory=dict)


KINDS = Slice.__struct_fields__
encode_slice = msgspec.json.Encoder().encode
decode_slice = msgspec.json.Decoder(Slice).decode


def slices(table: StockTable) -> Iterator[Slice]:
    """The table in pieces. A product with many buyers is a large thing: `held_by` is rebuilt from its purchases."""
    piece: dict[ProductId, Product] = {}
    weight = 0
    for product_id, product in table.products.items():
        piece[product_id] = msgspec.structs.replace(product, held_by={})
        weight += 4 + len(product.answered)
        if weight >= SLICE_WEIGHT_MAX:
            yield Slice(products=piece)
            piece, weight = {}, 0
    yield Slice(products=piece)
    for kind in ("purchases", "rejected", "rejected_before"):
        entries: Iterator[tuple[Any, Any]] = iter(getattr(table, kind).items())
        while some := dict(islice(entries, SLICE_WEIGHT_MAX)):
            yield Slice(**{kind: some})


def encoded(piece: Slice) -> Iterator[bytes]:
    """A piece in its wire form, in halves of halves as long as one is too large for a record."""
    value = encode_slice(piece)
    if len(value) <= SLICE_BYTES_MAX:
        yield value
        return
    kind = next(kind for kind in KINDS if getattr(piece, kind))
    entries = list(getattr(piece, kind).items())
    middle = len(entries) // 2
    for half in (entries[:middle], entries[middle:]):
        yield from encoded(Slice(**{kind: dict(half)}))


def join(partition: int, pieces: Iterator[Slice], generation: int = REJECTED_GENERATION) -> StockTable:
    """The table that was cut into these pieces."""
    table = StockTable(partition, generation=generation)
    for piece in pieces:
        for kind in KINDS:
            getattr(table, kind).update(getattr(piece, kind))
    for held in table.purchases.values():
        if held.live:
            buyers = table.products[held.product_id].held_by
            buyers[held.buyer_id] = buyers.get(held.buyer_id, 0) + held.quantity
    return table
