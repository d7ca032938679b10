"""How older versions of messages become the newest one. Pure; every version ever written keeps its golden file.

There is one version of everything so far. The second one of, say, PurchaseRequested puts
`("PurchaseRequested", 1): lift_purchase_requested_1` here, with the old struct beside its function.
"""

from collections.abc import Callable
from typing import get_args

from stampede_schemas.requests import AnyRequest

KNOWN_REQUEST_TYPES: frozenset[str] = frozenset(message.__name__ for message in get_args(AnyRequest))
REQUEST_UPCASTS: dict[tuple[str, int], Callable[[bytes], AnyRequest]] = {}
