"""What may come in: the rules for headers, body, idempotency key and identity of a purchase. Pure.

Every function answers with a value or with the Problem that says why not. Must not do I/O, read a clock or know who
serves HTTP; the purchase endpoint and the FastAPI routes both obey it.
"""

import re
from hashlib import blake2b
from typing import Annotated

import msgspec

from gateway.http import problems
from gateway.http.requests import without_duplicates
from service.problem_details import Problem
from stampede_schemas.identifiers import QUANTITY_MAX, ProductId

PAYMENT_METHOD_DEFAULT = "ok"  # what the simulated provider approves; real ones are named by the buyer
PRODUCT_ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"  # canonical: one spelling per product, safe in paths and logs
PAYMENT_METHOD_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,31}$"
_product_id = re.compile(PRODUCT_ID_PATTERN)
_BARE_QUOTES = {False: 6, True: 10}  # quotation marks in a body without duplicates: keys and strings, twice each
# msgspec matches with Python's re, whose $ lets a final newline through; \Z does not.
_ProductId = Annotated[str, msgspec.Meta(pattern=PRODUCT_ID_PATTERN[:-1] + r"\Z", examples=["tea"])]
_PaymentMethod = Annotated[
    str,
    msgspec.Meta(pattern=PAYMENT_METHOD_PATTERN[:-1] + r"\Z", extra_json_schema={"default": PAYMENT_METHOD_DEFAULT}),
]


class PurchaseOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to buy. Unknown fields are refused."""

    product_id: _ProductId
    quantity: Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX, examples=[1])]
    payment_method: _PaymentMethod | msgspec.UnsetType = msgspec.UNSET


_body = msgspec.json.Decoder(PurchaseOrder)


def purchase_body(body: bytes) -> PurchaseOrder | Problem:
    """The body, if it is one JSON object with exactly the known fields, each once."""
    try:
        parsed = _body.decode(body)
        once = b"\\" not in body and body.count(b'"') == _BARE_QUOTES[parsed.payment_method is not msgspec.UNSET]
        return parsed if once else without_duplicates(body) or parsed
    except msgspec.ValidationError as error:
        return without_duplicates(body) or Problem(problems.INVALID_BODY, f"{error}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return without_duplicates(body) or Problem(problems.INVALID_BODY, "A value is not one that JSON has.")


def is_product_id(text: str) -> bool:
    """Whether this is the canonical spelling of a possible product id."""
    return _product_id.fullmatch(text) is not None


def fingerprint(body: PurchaseOrder) -> str:
    """Hash of the canonical body: what must be equal when a key is used again."""
    return blake2b(
        msgspec.json.encode([body.product_id, body.quantity, payment_method(body)]), digest_size=16
    ).hexdigest()


def payment_method(body: PurchaseOrder) -> str:
    """The way of paying that was named, or the default."""
    return PAYMENT_METHOD_DEFAULT if body.payment_method is msgspec.UNSET else body.payment_method


def product_of(body: PurchaseOrder) -> ProductId:
    """The product asked for, as the word of the domain."""
    return ProductId(body.product_id)
