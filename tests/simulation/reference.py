"""What must be true of a `decisions` partition, in its own few lines: no code of the services, plain JSON dicts.

It is fed every record as it lands, tells which ones count, and judges each decision against a model of the rules.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec

from tests.support.builders.requests import ELSEWHERE

Json = dict[str, Any]
_json = msgspec.json.Decoder().decode
KNOWN = {
    "ProductListRequested", "ProductRetireRequested", "RestockRequested", "ReleaseRequested", "PurchaseRequested",
}  # fmt: skip
THRIFTY_REFUSES = ("ann", "bob")  # buyers whom the other rule set never serves


class Violation(Exception):
    """An invariant of PROOF.md does not hold; `rule` is its name."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule, self.what = rule, what


class Fact:
    """A counting record: where it stands, what it answers, who wrote it."""

    __slots__ = ("load", "offset", "source")

    def __init__(self, offset: int, source: int, load: str) -> None:
        self.offset, self.source, self.load = offset, source, load


Counts = Callable[["Reference", int, Json], bool]


def counts(reference: "Reference", offset: int, record: Json) -> bool:
    """Rule 2 of the design: the next source offset, by the same load, or exactly where its load ended."""
    last = reference.facts[-1] if reference.facts else Fact(-1, -1, "")
    follows: bool = record["source_offset"] == last.source + 1
    return follows and (record["load"] == last.load or record["start"] == offset)


class Reference:
    """One partition as an outsider sees it. `requests` and `letters` are the world's own, and grow.

    The n-th rejection belongs to generation n // `generation`: the last one's and the one before are remembered.
    """

    def __init__(
        self,
        requests: Sequence[tuple[int, bytes | None, int]],
        letters: Mapping[tuple[int, int], bytes],
        thrifty: bool,
        rule: Counts,
        generation: int,
    ) -> None:
        self.facts: list[Fact] = []
        self.products: dict[str, Json] = {}
        self.held: dict[str, Json] = {}
        self.rejected: dict[str, Json] = {}
        self._rejections = 0
        self._requests, self._letters, self._thrifty, self._rule = requests, letters, thrifty, rule
        self._generation = generation

    @property
    def answered(self) -> int:
        """The last request that has a counting decision, -1 without one."""
        return self.facts[-1].source if self.facts else -1

    def landed(self, offset: int, value: bytes) -> bool:
        """Take in a record; True if it counts. Raises Violation."""
        record: Json = _json(value)
        if not self._rule(self, offset, record):
            return False
        source = record["source_offset"]
        if source != self.answered + 1:
            raise Violation("S3", f"the answer to request {source} counts after that to {self.answered}")
        if source >= len(self._requests):
            raise Violation("S3", f"offset {offset} answers request {source}, which does not exist")
        self.facts.append(Fact(offset, source, record["load"]))
        _, content, at_ms = self._requests[source]
        if record["source_crc"] != crc32(content or b"") or record["appended_at_ms"] != at_ms:
            raise Violation("S16", f"offset {offset} answers other bytes than those of request {source}")
        asked = _split(content)
        if len(asked) != len(record["decisions"]):
            raise Violation("S3", f"request {source} has {len(asked)} requests, {len(record['decisions'])} decisions")
        for index, (request, decision) in enumerate(zip(asked, record["decisions"], strict=True)):
            self._judge(request, decision, [0, source, index])
        return True

    def snapshot(self, value: bytes) -> None:
        """Take in a snapshot's commit record as it lands: it must speak of what counts by now. Raises Violation."""
        record = _json(value)
        if record["source_offset"] > self.answered:
            raise Violation("S12", f"a snapshot of request {record['source_offset']}, which has no answer: {record}")
        if record["source_offset"] < 0:
            return
        fact = self.facts[record["source_offset"]]
        upto = [f.source for f in self.facts if f.offset < record["next_offset"]]
        if (fact.load, fact.offset) != (record["load"], record["anchor"]) or upto[-1:] != [fact.source]:
            raise Violation("S12", f"a snapshot that does not name the last counting record: {record}")

    def _judge(self, request: Json | bytes, decision: Json, at: list[int]) -> None:
        kind = decision["type"]
        if kind == "Unreadable":
            if isinstance(request, dict):
                raise Violation("S4", f"{at} is readable, yet {decision}")
            if self._letters.get((at[1], at[2])) != request:
                raise Violation("S16", f"{at} is called unreadable before its dead letter is durable")
            return
        if not isinstance(request, dict):
            raise Violation("S4", f"{at} cannot be read, yet {decision}")
        expected = self._expected(request, at)
        said = (kind, decision.get("reason", ""))
        if said != expected and not (
            self._thrifty
            and expected[0] == "Reserved"
            and request["buyer_id"] in THRIFTY_REFUSES
            and said == ("Rejected", "buyer_limit")
        ):
            raise Violation("S4", f"{at} should be {expected} but is {decision}")
        self._apply(request, decision, at)

    def _expected(self, request: Json, at: list[int]) -> tuple[str, str]:
        product = self.products.get(request["product_id"])
        match request["type"]:
            case "ProductListRequested":
                if product is None:
                    return "ProductListed", ""
                if product["retired"]:
                    return "Ignored", "retired"
                return "Ignored", "same" if product["asked"] == _terms(request) else "conflict"
            case "RestockRequested":
                if product is None:
                    return "RestockRejected", "unknown_product"
                if request["request_id"] in product["operator"]:
                    return "Ignored", "same"
                if product["retired"]:
                    return "Ignored", "retired"
                below = product["available"] + request["quantity"] < 0
                return ("RestockRejected", "below_zero") if below else ("Restocked", "")
            case "ProductRetireRequested":
                if product is None:
                    return "Ignored", "unknown_product"
                return ("Ignored", "same") if product["retired"] else ("ProductRetired", "")
            case "ReleaseRequested":
                held = self.held.get(request["purchase_id"])
                fits = held and held["live"] and held["at"] == request["reservation"]
                fits = held and fits and held["product"] == request["product_id"]
                return ("Released", request["reason"]) if fits else ("Ignored", "not_held")
        if self._first(request["purchase_id"]):
            return "Ignored", "answered"
        if product is not None and product["retired"]:
            return "Ignored", "retired"
        return self._purchase(product, request["buyer_id"], request["quantity"])

    def _first(self, purchase_id: str) -> Json | None:
        """The first answer to a purchase, as long as it is remembered."""
        if purchase_id in self.held or purchase_id not in self.rejected or not self._generation:
            return self.held.get(purchase_id)
        rejected = self.rejected[purchase_id]
        generations = (self._rejections - 1) // self._generation - rejected["number"] // self._generation
        return rejected if generations <= 1 else None

    def _purchase(self, product: Json | None, buyer: str, quantity: int) -> tuple[str, str]:
        if product is None:
            return "Rejected", "unknown_product"
        if product["available"] == 0:
            return "Rejected", "sold_out"
        mine = sum(h["quantity"] for h in self.held.values() if h["live"] and h["of"] == (product["id"], buyer))
        if mine + quantity > product["limit"]:
            return "Rejected", "buyer_limit"
        return ("Rejected", "not_enough_left") if quantity > product["available"] else ("Reserved", "")

    def _apply(self, request: Json, decision: Json, at: list[int]) -> None:
        name, kind = decision["product_id"], decision["type"]
        product = self.products.get(name)
        if kind == "ProductListed":
            stock = decision["stock"]
            product = self.products[name] = {
                "id": name, "asked": _terms(request), "limit": decision["per_buyer_limit"], "stock": stock,
                "available": stock, "number": 0, "operator": {request["request_id"]}, "retired": False,
            }  # fmt: skip
        elif kind == "Reserved" and product is not None:
            product["available"] -= request["quantity"]
            product["number"] += 1
            if decision["reservation_no"] != product["number"] or decision["quantity"] != request["quantity"]:
                raise Violation("S4", f"{at} has a wrong number or quantity: {decision}")
            self.held[request["purchase_id"]] = {
                "at": at, "live": True, "quantity": request["quantity"], "product": name,
                "of": (name, request["buyer_id"]), "body": request["fingerprint"],
            }  # fmt: skip
        elif kind == "Rejected":
            self.rejected[request["purchase_id"]] = {
                "at": at, "body": request["fingerprint"], "number": self._rejections,
            }  # fmt: skip
            self._rejections += 1
        elif kind == "Released" and product is not None:
            held = self.held[request["purchase_id"]]
            held["live"] = False
            product["available"] += held["quantity"]
            if decision["quantity"] != held["quantity"] or decision["reservation"] != held["at"]:
                raise Violation("S6", f"{at} releases something else: {decision}")
        elif kind == "Restocked" and product is not None:
            product["stock"] += request["quantity"]
            product["available"] += request["quantity"]
        if kind in {"Restocked", "RestockRejected", "ProductRetired"} and product is not None:
            product["operator"].add(request["request_id"])
        if decision.get("reason") == "answered":
            first = self._first(request["purchase_id"]) or {}
            if decision["of"] != first["at"]:
                raise Violation("S9", f"{at} names {decision['of']} as the first answer, not {first}")
            if decision.get("mismatch", False) != (first["body"] != request["fingerprint"]):
                raise Violation("S9", f"{at} asks for {request['fingerprint']}, the first was {first}: {decision}")
        self._conserved(product, decision, at)
        if kind == "ProductRetired" and product is not None:
            product["retired"] = True
            self.held = {key: held for key, held in self.held.items() if held["product"] != name}

    def _conserved(self, product: Json | None, decision: Json, at: list[int]) -> None:
        if product is None or product["retired"]:
            return
        live = sum(h["quantity"] for h in self.held.values() if h["live"] and h["product"] == product["id"])
        available = product["stock"] - live
        if (
            available != product["available"]
            or available < 0
            or decision.get("available_after", available) != available
        ):
            raise Violation("S1", f"{at}: {available} of {product['stock']} are left, but {decision}")


def _terms(request: Json) -> Json:
    return {key: value for key, value in request.items() if key != "request_id"}


def _split(content: bytes | None) -> list[Json | bytes]:
    """The requests of a record; one that cannot be read stays the bytes that must be in its dead letter."""
    try:
        requests = msgspec.json.decode(content or b"", type=dict[str, list[msgspec.Raw]])["requests"]
    except msgspec.DecodeError:
        requests = []
    if not requests:
        return [content or b""]
    return [_request(bytes(raw)) for raw in requests]


def _request(raw: bytes) -> Json | bytes:
    request = _json(raw)
    readable = isinstance(request, dict) and request.get("type") in KNOWN and request["product_id"] != ELSEWHERE
    return request if readable else raw
