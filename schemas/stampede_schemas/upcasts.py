"""How older versions of messages become the newest one. Pure; every version ever written keeps its golden file.

The second version of, say, PurchaseRequested puts `("PurchaseRequested", 1): lift_purchase_requested_1` into its
table, with the old struct beside its function, as `Ignored` does.
"""

from collections.abc import Callable
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from stampede_schemas.decisions import AnyDecision, Ignored, IgnoreReason
from stampede_schemas.identifiers import Position, ProductId, PurchaseId, RequestId
from stampede_schemas.requests import AnyRequest


class _Ignored1(Struct, frozen=True, tag_field="type", tag="Ignored", kw_only=True):
    """`Ignored` before it compared the bodies of a repeat and of the first one."""

    v: Literal[1] = 1
    reason: IgnoreReason
    product_id: ProductId
    request_id: RequestId | None = None
    purchase_id: PurchaseId | None = None
    of: Position | None = None


_ignored_1 = msgspec.json.Decoder(_Ignored1)


def lift_ignored_1(value: bytes) -> Ignored:
    """Version 1 did not look at the bodies, so no difference is claimed of it."""
    old = _ignored_1.decode(value)
    return Ignored(
        v=2,
        reason=old.reason,
        product_id=old.product_id,
        request_id=old.request_id,
        purchase_id=old.purchase_id,
        of=old.of,
        mismatch=False,
    )


KNOWN_REQUEST_TYPES: frozenset[str] = frozenset(message.__name__ for message in get_args(AnyRequest))
REQUEST_UPCASTS: dict[tuple[str, int], Callable[[bytes], AnyRequest]] = {}
DECISION_UPCASTS: dict[tuple[str, int], Callable[[bytes], AnyDecision]] = {("Ignored", 1): lift_ignored_1}
