"""What happens in a history, drawn from one seed before anything runs: requests, rules, the temper of the world."""

from random import Random
from typing import NamedTuple

from stampede_schemas.codec import encode, encode_requests
from stampede_schemas.requests import AnyRequest
from tests.support.builders.requests import ELSEWHERE, LAMP, MUG, listing, purchase, release, restock, retire

REQUESTS_MAX = 12
STEPS_MAX = 60
SLOTS = 3
ORDERS_EVERY = 8  # in every eighth history the decisions are also paid for, cancelled and given back
Step = tuple[str, int, int]  # verb, slot of a worker, and how much of it

_BUYERS = ("ann", "bob", "cid")
_NEW, _STUBBORN_NEW = 0.5, 0.27  # below this a purchase is a new one, else it is repeated
_REPEAT, _RELEASE, _RESTOCK, _LIST = 0.62, 0.83, 0.95, 0.98


class Plan(NamedTuple):
    """`values` are the request records; `thrifty` tells which workers decide by the other rules.

    `orders`: order-writers take part; `free`: they take no payment. In those histories nothing is forgotten, neither
    rejections nor the reservations of a retired product.
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
    rejected_generation: int  # 0: each rejection is forgotten at once


def draw(seed: int) -> tuple[Plan, Random]:
    """The plan of a seed, and the dice to go on with."""
    dice = Random(seed)
    roll = dice.random
    pair = roll() < 0.5
    orders = seed % ORDERS_EVERY == 0
    plan = Plan(
        seed,
        _values(dice, orders=orders),
        tuple(pair and roll() < 0.5 for _ in range(SLOTS)),
        1 + int(roll() * 6),
        0.02 if roll() < 0.7 else 3.0,
        roll() < 0.1,
        roll() < 0.5,
        12 + int(roll() * (STEPS_MAX - 12)),
        orders=orders,
        free=seed % (4 * ORDERS_EVERY) == 0,
        rejected_generation=0 if orders else 1 + int(3 * roll() ** 2),
    )
    return plan, dice


def _values(dice: Random, *, orders: bool) -> list[bytes | None]:
    roll = dice.random
    stubborn = roll() < (
        0.5 if orders else 0.2
    )  # little to sell at first, and buyers who come back for it again and again
    total = REQUESTS_MAX if stubborn else 3 + int(roll() * (REQUESTS_MAX - 2))
    stock = int(roll() * 2) if stubborn else 1 + int(roll() * 3)
    new = _STUBBORN_NEW if stubborn else _NEW
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
            first = not values and not index
            request = listing(LAMP, stock) if first else _request(dice, bought, (offset, index), new, not orders)
            requests.append(request)
            pieces.append(encode(request))
        if values and roll() < 0.05:
            pieces[int(roll() * batch)] = b'{"type":"BadRequested"}'
            values.append(b'{"requests":[' + b",".join(pieces) + b"]}")
        else:
            values.append(encode_requests(requests))
    return values


def _request(
    dice: Random, bought: list[tuple[str, int, int]], at: tuple[int, int], new: float, retires: bool
) -> AnyRequest:
    roll = dice.random
    kind = roll()
    if kind < _REPEAT or not bought:
        name = f"b{len(bought)}" if kind < new or not bought else bought[int(roll() * len(bought))][0]
        bought.append((name, *at))
        product = LAMP if roll() < 0.9 else MUG if roll() < 0.8 else ELSEWHERE
        body = "f" if roll() < 0.8 else "g"
        return purchase(name, _BUYERS[int(roll() * 3)], 1 + int(roll() * 1.4), product, body)
    if kind < _RELEASE:
        name, *held = bought[int(roll() * len(bought))]
        return release((held[0], held[1]), name, LAMP if roll() < 0.95 else MUG)
    if kind < _RESTOCK:
        return restock(int(roll() * 5) - 2 or 1, f"r{int(roll() * 3)}", LAMP if roll() < 0.9 else MUG)
    if kind > _LIST and retires:
        return retire(f"r{int(roll() * 3)}", LAMP if roll() < 0.9 else MUG)
    return listing(MUG if roll() < 0.7 else LAMP, 1 + int(roll() * 3), request=f"l{at[0]}.{at[1]}")
