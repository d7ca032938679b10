"""The ids of purchases and the pseudonyms of buyers, derived from who asks and for what. Pure."""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from stampede_schemas.identifiers import BuyerId, ProductId, PurchaseId, RequestId
from stampede_schemas.topics import PARTITIONS, partition_of

IDENTITY_SECRET_BYTES_MIN = 32
BUYER_ID_PATTERN = r"^b[0-9a-f]{32}$"  # a pseudonym, as IdentityKey makes them
ID_FORM = "2"  # 1: without product and partition
_PURCHASE_ID = re.compile(r"[a-z0-9]{4}-(?:([0-9a-f]{2})-)?[0-9a-f]{32}")
partition_of_product = lru_cache(maxsize=10_000)(partition_of)  # a sale is a few products


class Subject(NamedTuple):
    """An authenticated caller: the party that vouches, and its name for the buyer. Never written anywhere as it is."""

    issuer: str
    name: str
    roles: frozenset[str] = frozenset()


class PurchasePlace(NamedTuple):
    """Where the log keeps a purchase; `partition` None: an id of the form that did not say it."""

    partition: int | None


class IdentityKey:
    """The secret behind purchase ids and buyer pseudonyms; all gateways of an installation share it.

    Purchase ids are derived, never stored, so every gateway gives the same request the same id. The parts are hashed
    with their lengths: no two different lists of parts look alike.
    """

    def __init__(self, secret: str) -> None:
        if len(secret.encode()) < IDENTITY_SECRET_BYTES_MIN:
            raise ValueError(f"the identity key must have at least {IDENTITY_SECRET_BYTES_MIN} bytes")
        self._states = {
            use: blake2b(digest_size=16, key=blake2b(secret.encode(), digest_size=32, person=use).digest())
            for use in (b"purchase", b"buyer", b"request", b"fingerprint")
        }
        self.cursor_key = blake2b(secret.encode(), digest_size=32, person=b"cursor").digest()
        self.fingerprint = self._hash(b"fingerprint", ID_FORM)  # gateways that make other ids are told apart by it
        self.kid = self.fingerprint[:4]

    def _hash(self, use: bytes, *parts: str) -> str:
        state = self._states[use].copy()
        state.update("".join([f"{len(part)}:{part}" for part in parts]).encode())
        return state.hexdigest()

    def purchase_id(self, subject: Subject, method: str, route: str, product_id: ProductId, key: str) -> PurchaseId:
        """The id of the purchase of `subject` under this Idempotency-Key; it names the partition of the product."""
        hashed = self._hash(b"purchase", subject.issuer, subject.name, method, route, product_id, key)
        return PurchaseId(f"{self.kid}-{partition_of_product(product_id):02x}-{hashed}")

    def buyer_id(self, subject: Subject) -> BuyerId:
        """The pseudonym under which a buyer appears in the log."""
        return BuyerId("b" + self._hash(b"buyer", subject.issuer, subject.name))

    def request_id(self, *parts: str, content: bytes | None = None) -> RequestId:
        """The id of an operator's request, the same for the same parts.

        It ends in the fingerprint of the content, so that the log can tell a repeat from another use of the key.
        """
        told = "" if content is None else "-" + self._hash(b"request", content.decode())[:16]
        return RequestId("r" + self._hash(b"request", *parts) + told)

    def place_of(self, text: str) -> PurchasePlace | None:
        """Where the log keeps the purchase with this id; None: it is none of ours."""
        if (found := _PURCHASE_ID.fullmatch(text)) is None:
            return None
        if found[1] is None:
            return PurchasePlace(None)
        partition = int(found[1], 16)
        return PurchasePlace(partition) if text.startswith(self.kid) and partition < PARTITIONS else None
