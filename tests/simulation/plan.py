"""What happens in a history, drawn from one seed before anything runs: requests, rules, the temper of the world."""

from random import Random
from typing import NamedTuple

from stampede_schemas.codec import encode, encode_requests
from stampede_schemas.requests import AnyRequest
from tests.support.requests import ELSEWHERE, LAMP, MUG, listing, purchase, release, restock

REQUESTS_MAX = 12
STEPS_MAX = 60
SLOTS = 3
ORDERS_EVERY = 8  # in every eighth history the decisions are also paid for, cancelled and given back
Step = tuple[str, int, int]  # verb, slot of a worker, and how much of it

_BUYERS = ("ann", "bob", "cid")


class Plan(NamedTuple):
    """`values` are the request records; `thrifty` tells which workers decide by the other rules.

    `orders`: order-writers take part; `free`: they take no payment.
    """

    seed: int
    values: list[bytes | None]
    thrifty: tuple[bool, ...]
    snapshot_every: int
    seconds_per_step: float
    two_owners: bool
    late_lands: bool
    steps: int
    orders: bool
    free: bool


def draw(seed: int) -> tuple[Plan, Random]:
    """The plan of a seed, and the dice to go on with."""
    dice = Random(seed)
    roll = dice.random
    pair = roll() < 0.5
    plan = Plan(
        seed,
        _values(dice),
        tuple(pair and roll() < 0.5 for _ in range(SLOTS)),
        1 + int(roll() * 6),
        0.02 if roll() < 0.7 else 3.0,
        roll() < 0.1,
        roll() < 0.5,
        12 + int(roll() * (STEPS_MAX - 12)),
        orders=seed % ORDERS_EVERY == 0,
        free=seed % (4 * ORDERS_EVERY) == 0,
    )
    return plan, dice


def _values(dice: Random) -> list[bytes | None]:
    roll = dice.random
    total = 3 + int(roll() * (REQUESTS_MAX - 2))
    stock = 1 + int(roll() * 3)
    bought: list[tuple[str, int, int]] = []
    values: list[bytes | None] = []
    left = total
    while left > 0:
        if values and roll() < 0.04:
            values.append(None if roll() < 0.3 else b"\xff{" if roll() < 0.5 else b'{"requests":[]}')
            left -= 1
            continue
        batch = min(left, 1 if roll() < 0.6 else 1 + int(roll() * 3))
        left -= batch
        offset = len(values)
        pieces: list[bytes] = []
        requests: list[AnyRequest] = []
        for index in range(batch):
            request = listing(LAMP, stock) if not values and not index else _request(dice, bought, offset, index)
            requests.append(request)
            pieces.append(encode(request))
        if values and roll() < 0.05:
            pieces[int(roll() * batch)] = b'{"type":"BadRequested"}'
            values.append(b'{"requests":[' + b",".join(pieces) + b"]}")
        else:
            values.append(encode_requests(requests))
    return values


def _request(dice: Random, bought: list[tuple[str, int, int]], offset: int, index: int) -> AnyRequest:
    roll = dice.random
    kind = roll()
    if kind < 0.62 or not bought:
        name = f"b{len(bought)}" if kind < 0.5 or not bought else bought[int(roll() * len(bought))][0]
        bought.append((name, offset, index))
        product = LAMP if roll() < 0.9 else MUG if roll() < 0.8 else ELSEWHERE
        return purchase(name, _BUYERS[int(roll() * 3)], 1 + int(roll() * 1.4), product)
    if kind < 0.85:
        name, *at = bought[int(roll() * len(bought))]
        return release((at[0], at[1]), name, LAMP if roll() < 0.95 else MUG)
    if kind < 0.95:
        return restock(int(roll() * 4) - 2 or 1, f"r{int(roll() * 3)}", LAMP if roll() < 0.9 else MUG)
    return listing(MUG if roll() < 0.7 else LAMP, 1 + int(roll() * 3), request=f"l{offset}.{index}")
