"""Claims: who was let through with which request, kept in Redis for a day so that a repeat is known anywhere.

A claim is made in the same call that spends the tokens, and settled with the next one. Pure; the rules themselves are
in `lua/check.lua`.
"""

from enum import IntEnum
from typing import Literal, NamedTuple

KEPT_S = 86_400
# A claim in flight for longer says nothing any more: its request is to be sent again. A producer must give up sooner.
DEADLINE_S = 10.0


class Known(IntEnum):
    """What a request's claim says; the numbers are the Lua script's."""

    NEW = 0
    ACCEPTED = 1  # settled: the first answer holds
    OTHER = 2  # claimed for another body
    IN_FLIGHT = 3
    AGAIN = 4  # in flight past its deadline: neither accepted nor refused


class Claim(NamedTuple):
    """What a request would claim: its id, the fingerprint of its body, whose it is. Neither may hold a space.

    Without `wanted` it is only looked for; nothing is claimed.
    """

    id: str
    fingerprint: str
    buyer: str
    wanted: bool = True


class Settled(NamedTuple):
    """What became of a request: accepted (whatever the claim was), open again, or dropped (those two: only if ours)."""

    id: str
    fingerprint: str
    buyer: str
    how: Literal["a", "o", "d"]


class Found(NamedTuple):
    """A claim that was looked up; `at_ms` is Redis' clock when it was accepted, or claimed."""

    buyer: str
    at_ms: int


def read_claim(text: str) -> Found | None:
    """The claim as the script keeps it; None: there is none."""
    parts = text.split(" ")
    if len(parts) != 5:
        return None
    state, until_ms, _, _, buyer = parts
    return Found(buyer, int(until_ms) - (int(DEADLINE_S * 1000) if state == "i" else 0))
