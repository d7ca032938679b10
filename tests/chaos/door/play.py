"""Plays one round at the door: the sale, the strikes, the healing, the questions afterwards, the check."""

import asyncio
import time
from collections import Counter
from random import Random
from typing import NamedTuple

import aiohttp
from redis import Redis

from devstack.failure import StackError
from ratelimit.limiter import CLAIM_PREFIX
from replay.evidence import Evidence, Row
from replay.journal import Attempt, Journal, Told
from tests.chaos.arena import Arena
from tests.chaos.door import coverage
from tests.chaos.door.account import Account, Call, Send, read_calls
from tests.chaos.door.buyers import LIMITS, Crowd
from tests.chaos.door.client import Client, told_apart
from tests.chaos.door.plan import DoorRound
from tests.chaos.door.rules import RULES
from tests.chaos.door.s11 import purchase_of
from tests.chaos.door.till import Till
from tests.chaos.door.watch import Watch, now_ms, watching
from tests.chaos.faults import AT_THE_DOOR
from tests.chaos.money import BOOKS, facts, wrong_money
from tests.chaos.plan import Strike
from tests.chaos.verdict import SAID_MAX, at_rest, collect, judged

CONNECTIONS_MAX = 500
ROUND_S_MAX = 240.0
BELIEVED_S_MAX = 40.0  # after the last fault: 11 s, what was to be written, and some looks
LOOK_S = 0.1
BY_DRIVER = {"S8", "S9", "S10"}


class Played(NamedTuple):
    """What came of a round. `counted`: how often each thing happened that it was meant to test."""

    round: DoorRound
    hits: list[bool]
    wrong: list[str]
    counted: Counter[str]
    believed_s: float
    minutes: float
    account: Account | None
    evidence: Evidence | None


class _Seen(NamedTuple):
    client: Client
    hits: list[bool]
    memory: Watch
    believed_s: float
    wrong: list[str]


async def play(arena: Arena, planned: DoorRound) -> Played:
    """One round; whatever is wrong is in the result."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(ROUND_S_MAX):
            seen = await _sell(arena, planned)
            resting, _ = await at_rest(arena.stack)
            account = await asyncio.to_thread(_account, arena, seen)
            evidence = await asyncio.to_thread(collect, arena.stack)
    except (StackError, AssertionError, TimeoutError, OSError) as error:
        arena.tell(f"the round broke off after {time.monotonic() - began:.0f} s")
        arena.leave()
        wrong = [f"the round broke off: {str(error) or type(error).__name__}"]
        return Played(planned, [], wrong, Counter(), 0.0, planned.lasts_s / 60, None, None)
    assert evidence.database is not None
    account.bought = {row.purchase_id: body_of(row) for row in evidence.database.rows.values()}
    account.stock = {product: stock(evidence, product) for product in planned.products}
    wrong = seen.wrong + resting + await asyncio.to_thread(_wrong, arena, planned, seen.client, account, evidence)
    counted = await asyncio.to_thread(coverage.counts, account)
    return Played(planned, seen.hits, wrong, counted, seen.believed_s, planned.lasts_s / 60, account, evidence)


async def _sell(arena: Arena, planned: DoorRound) -> _Seen:
    dice = Random(planned.seed)
    gateways = dict(zip(arena.names("gateway"), arena.stack.endpoints.gateway, strict=True))
    connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
    with watching(arena.stack.redis) as watch:
        async with aiohttp.ClientSession(connector=connector) as http:
            client = Client(http, gateways)
            crowd = Crowd(client, planned.products, dice, planned.number)
            till = Till(http, arena.stack.endpoints, Random(planned.seed + 1))
            for product in planned.products:
                await till.list(product)
            hits = await _under_fire(arena, planned, crowd, till)
            doubtful = await crowd.settle()
            healed = time.monotonic()
            wrong = [f"{len(doubtful)} keys are still in doubt, like {doubtful[0]}"] if doubtful else []
            while not (believed := _believed(arena, gateways)) and time.monotonic() - healed < BELIEVED_S_MAX:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
            if not believed:
                wrong.append(f"Redis is not believed {BELIEVED_S_MAX:.0f} s after the last fault")
    return _Seen(client, hits, watch, time.monotonic() - healed, wrong)


async def _under_fire(arena: Arena, planned: DoorRound, crowd: Crowd, till: Till) -> list[bool]:
    locks = {fault.target: asyncio.Lock() for fault in AT_THE_DOOR.values()}
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.run(planned.lasts_s))
            for product in planned.products:
                group.create_task(till.wobble(product, planned.lasts_s))
            striking = [group.create_task(_strike(arena, strike, locks)) for strike in planned.strikes]
            hits = [await struck for struck in striking]
            await asyncio.to_thread(arena.heal)
    except BaseExceptionGroup as group_of:
        raise group_of.exceptions[0] from None
    return hits


async def _strike(arena: Arena, strike: Strike, locks: dict[str, asyncio.Lock]) -> bool:
    fault = AT_THE_DOOR[strike.fault]
    await asyncio.sleep(strike.at_s)
    async with locks[fault.target]:
        return await asyncio.to_thread(fault.strike, arena, Random(strike.seed), strike.lasts_s)


def _calls(arena: Arena, gateway: str) -> list[Call]:
    return list(read_calls((arena.folder / f"{gateway}.witness").read_bytes().splitlines()))


def _believed(arena: Arena, gateways: dict[str, str]) -> bool:
    return all(_calls(arena, gateway)[-1].vouched for gateway in gateways)


def _account(arena: Arena, seen: _Seen) -> Account:
    client = seen.client
    ids = sorted({purchase_of(send) for send in client.sends if send.accepted})
    redis: Redis = Redis.from_url(arena.stack.redis, decode_responses=True, socket_timeout=5)
    try:
        held = redis.mget([CLAIM_PREFIX + purchase_id for purchase_id in ids]) if ids else []
    finally:
        redis.close()
    begin = min((send.sent_ms for send in client.sends), default=0.0) - 1_000
    return Account(
        LIMITS,
        len(client.gateways),
        client.sends,
        client.looks,
        {name: [call for call in _calls(arena, name) if call.ended_ms >= begin] for name in client.gateways},
        seen.memory.memory,
        {purchase_id: str(claim or "") for purchase_id, claim in zip(ids, held, strict=True)},
        settled_ms=now_ms(),
    )


def _wrong(arena: Arena, planned: DoorRound, client: Client, account: Account, evidence: Evidence) -> list[str]:
    wrong = judged(evidence, [journal(client, account, product) for product in planned.products], BY_DRIVER)
    assert evidence.database is not None
    wrong += list(wrong_money(facts(arena.folder / BOOKS), evidence.database.rows))[:SAID_MAX]
    rows = evidence.database.rows.keys()
    lost = [purchase_id for purchase_id in account.claims if purchase_id not in rows]
    wrong += [f"S8: {len(lost)} accepted purchases have no row, like {lost[0]}"] if lost else []
    for rule in RULES:
        found = list(rule.check(account))
        wrong += [f"{rule.name} is violated {len(found)} times: {one.at}: {one.what}" for one in found[:SAID_MAX]]
    return wrong


def body_of(row: Row) -> str:
    """As `Send` tells bodies apart."""
    return told_apart({"product_id": row.product_id, "quantity": row.quantity, "payment_method": row.payment_method})


def journal(client: Client, account: Account, product: str) -> Journal:
    """What buyers were told of a product, as `replay` judges it. Who asks at several gateways may hear old news."""
    attempts = [
        _attempt(line, sends, client.polled.get(key, []))
        for line, (key, sends) in enumerate(account.by_key.items(), 2)
        if product in client.products[key]
    ]
    return Journal(product, attempts)


def _attempt(line: int, sends: list[Send], polled: list[tuple[int, str]]) -> Attempt:
    answers = [
        Told(send.status, send.raw, send.sent_ms, send.answered_ms)
        for send in sorted(sends, key=lambda one: one.answered_ms)
    ]
    purchase_id = next((purchase_of(send) for send in sends if send.accepted), "")
    one = sends[0]
    return Attempt(line, one.buyer, one.key, purchase_id, "", twin=True, answers=answers, polled=polled)


def stock(evidence: Evidence, product: str) -> list[tuple[float, int]]:
    """What was available from when on, by the machine's monotonic clock."""
    ahead_ms = time.time() * 1000 - now_ms()
    return [
        (record.at_ms - ahead_ms, answer.available_after)
        for partition in evidence.partitions.values()
        for record in partition.counting
        for answer in record.answers or ()
        if answer.product_id == product and answer.available_after is not None
    ]
