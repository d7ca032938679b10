"""The reference model: what the answer to each request must be, from the requests alone.

It reads no decision. It is written from the design, shares nothing with the inventory's code, and prefers to be
plain to being fast. It knows two versions of the rules; a sale that was decided by others needs their model.
"""

from replay.contract import (
    REJECTED_GENERATION,
    STOCK_MAX,
    Answer,
    AnyRequest,
    ChangeRequest,
    ListRequest,
    LogPosition,
    PurchaseRequest,
    ReleaseRequest,
    RestockRequest,
    RetireRequest,
)
from stampede_schemas.topics import partition_of

FINGERPRINT_REMEMBERED = 16  # characters, of a rejected purchase
OPERATOR_REQUESTS_REMEMBERED = 1_000
_AFTER = {"open": "open", "close": "closed", "pause": "paused"}


class Held:
    """A reservation."""

    __slots__ = ("live", "place", "request")

    def __init__(self, request: PurchaseRequest, place: LogPosition) -> None:
        self.request, self.place, self.live = request, place, True


class Product:
    """A product as the model sees it. `terms` is what it was listed with, `now` what holds for it at this point."""

    def __init__(self, terms: ListRequest) -> None:
        self.terms = terms
        self.now = {name: getattr(terms, name) for name in _CHANGEABLE}
        self.status = "open"
        self.stock = self.left = terms.stock
        self.numbered = 0
        self.units: dict[str, int] = {}  # live, by buyer
        self.answered = dict.fromkeys([terms.request_id])

    def remember(self, request_id: str) -> None:
        """An operator's request has its answer; the oldest is forgotten."""
        self.answered[request_id] = None
        if len(self.answered) > OPERATOR_REQUESTS_REMEMBERED:
            del self.answered[next(iter(self.answered))]

    def whole(self, kind: str, request_id: str) -> Answer:
        """A decision that says everything about the product."""
        terms = self.terms
        return Answer(
            kind, terms.product_id, request_id=request_id, name=terms.name, currency=terms.currency, stock=self.stock,
            available_after=self.left, status=self.status, **self.now,
        )  # fmt: skip


_CHANGEABLE = ("unit_price_minor", "per_buyer_limit", "hold_ms", "opens_at_ms", "closes_at_ms")


class Model:
    """One partition. Feed it every request in order.

    `older`: by the rules from before a repeat was told whether its body differs. A purchase of a retired product was
    rejected as `closed` then, remembered or not.
    """

    def __init__(self, partition: int, generation: int = REJECTED_GENERATION) -> None:
        self.older = False
        self._partition, self._generation = partition, generation
        self._products: dict[str, Product] = {}
        self._held: dict[str, Held] = {}
        self._rejected: dict[str, tuple[LogPosition, str]] = {}
        self._rejected_before: dict[str, tuple[LogPosition, str]] = {}

    def answer(self, request: AnyRequest, place: LogPosition, at_ms: int) -> Answer:
        """What this request must be answered, at this place, appended at this instant of the broker's clock."""
        said = self._answer(request, place, at_ms)
        if said.type == "Ignored":
            said.v, said.mismatch = (1, False) if self.older else (2, said.mismatch)
        return said

    def _answer(self, request: AnyRequest, place: LogPosition, at_ms: int) -> Answer:
        product = self._products.get(request.product_id)
        if product is None and partition_of(request.product_id) != self._partition:
            return Answer("Unreadable", reason="wrong_partition")
        match request:
            case PurchaseRequest():
                return self._purchase(request, product, place, at_ms)
            case ReleaseRequest():
                return self._release(request, product)
            case ListRequest():
                return self._list(request, product)
        said = _operator(request, product)
        if said.type == "ProductRetired":
            self._held = {key: held for key, held in self._held.items() if held.request.product_id != said.product_id}
        return said

    def _purchase(self, request: PurchaseRequest, product: Product | None, place: LogPosition, at_ms: int) -> Answer:
        key = request.purchase_id
        if (first := self._first(request)) is not None:
            return Answer("Ignored", request.product_id, key, reason="answered", of=first[0], mismatch=first[1])
        if product is not None and product.status == "retired" and not self.older:
            return Answer("Ignored", request.product_id, key, reason="retired")
        said = Answer(
            "Rejected", request.product_id, key, "", request.buyer_id, request.quantity, request.payment_method,
            request.fingerprint, _refusal(request, product, at_ms), product.left if product else 0,
        )  # fmt: skip
        if product is None or said.reason:
            if len(self._rejected) >= self._generation:
                self._rejected_before, self._rejected = self._rejected, {}
            self._rejected[key] = place, request.fingerprint[:FINGERPRINT_REMEMBERED]
            return said
        product.left -= request.quantity
        product.numbered += 1
        product.units[request.buyer_id] = product.units.get(request.buyer_id, 0) + request.quantity
        self._held[key] = Held(request, place)
        said.type, said.available_after, said.reservation_no = "Reserved", product.left, product.numbered
        said.unit_price_minor, said.hold_ms = product.now["unit_price_minor"], product.now["hold_ms"]
        said.currency = product.terms.currency
        return said

    def _first(self, request: PurchaseRequest) -> tuple[LogPosition, bool] | None:
        """Where this purchase was answered first, and whether it asked for something else there, if remembered."""
        key, body = request.purchase_id, request.fingerprint
        if (held := self._held.get(key)) is not None:
            return held.place, held.request.fingerprint != body
        if (rejected := self._rejected.get(key) or self._rejected_before.get(key)) is not None:
            return rejected[0], rejected[1] != body[:FINGERPRINT_REMEMBERED]
        return None

    def _release(self, request: ReleaseRequest, product: Product | None) -> Answer:
        held = self._held.get(request.purchase_id)
        if (
            product is None
            or held is None
            or not held.live
            or (held.place, held.request.product_id) != (request.reservation, request.product_id)
        ):
            return Answer("Ignored", request.product_id, request.purchase_id, reason="not_held")
        was, held.live = held.request, False
        product.left += was.quantity
        product.units[was.buyer_id] -= was.quantity
        return Answer(
            "Released", was.product_id, was.purchase_id, "", was.buyer_id, was.quantity, was.payment_method,
            was.fingerprint, request.reason, product.left, reservation=held.place,
        )  # fmt: skip

    def _list(self, request: ListRequest, product: Product | None) -> Answer:
        if product is None:
            self._products[request.product_id] = product = Product(request)
            return product.whole("ProductListed", request.request_id)
        same = all(
            getattr(request, name) == getattr(product.terms, name)
            for name in request.__struct_fields__
            if name != "request_id"
        )
        return Answer("Ignored", request.product_id, "", request.request_id, reason="same" if same else "conflict")


def _refusal(request: PurchaseRequest, product: Product | None, at_ms: int) -> str:
    """Why this purchase is refused, or nothing. The order matters: first what holds for all, then for this buyer."""
    if product is None:
        return "unknown_product"
    opens, closes = product.now["opens_at_ms"], product.now["closes_at_ms"]
    if product.status in {"closed", "retired"} or (closes is not None and at_ms >= closes):
        return "closed"
    if product.status == "paused":
        return "paused"
    if opens is not None and at_ms < opens:
        return "not_open"
    if product.left == 0:
        return "sold_out"
    if product.units.get(request.buyer_id, 0) + request.quantity > product.now["per_buyer_limit"]:
        return "buyer_limit"
    return "not_enough_left" if request.quantity > product.left else ""


def _operator(request: RestockRequest | ChangeRequest | RetireRequest, product: Product | None) -> Answer:
    """An operator's request about a product that is listed, or should be."""
    if isinstance(request, RestockRequest) and product is None:
        return _not_restocked(request, "unknown_product", 0)
    said = Answer("Ignored", request.product_id, "", request.request_id)
    retiring = isinstance(request, RetireRequest)
    if product is None:
        said.reason = "unknown_product"
    elif request.request_id in product.answered and not retiring:
        said.reason = "same"
    elif product.status == "retired":
        said.reason = "same" if retiring else "retired"
    if product is None or said.reason:
        return said
    product.remember(request.request_id)
    match request:
        case RestockRequest(quantity=more):
            if product.left + more < 0 or product.stock + more > STOCK_MAX:
                return _not_restocked(request, "below_zero" if product.left + more < 0 else "too_many", product.left)
            product.stock, product.left = product.stock + more, product.left + more
            said.type, said.quantity, said.available_after = "Restocked", more, product.left
            return said
        case ChangeRequest():
            for name in _CHANGEABLE:
                if getattr(request, name) is not None:
                    product.now[name] = getattr(request, name)
            product.status = _AFTER.get(request.action or "", product.status)
            return product.whole("ProductChanged", request.request_id)
        case RetireRequest():
            product.status = "retired"
            return product.whole("ProductRetired", request.request_id)


def _not_restocked(request: RestockRequest, reason: str, left: int) -> Answer:
    return Answer(
        "RestockRejected", request.product_id, "", request.request_id, quantity=request.quantity, reason=reason,
        available_after=left,
    )  # fmt: skip
