"""Plays one round at the edge: the sale, the strikes, the healing, the questions afterwards, the check."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple

import aiohttp

from devstack.failure import StackError
from devstack.proof import SAID_MAX
from gateway.auth.ids import IdentityKey, Subject
from replay.evidence import Evidence
from replay.failure import CannotCheck
from replay.journal import Attempt, Journal, Told
from tests.chaos.arena import Arena
from tests.chaos.edge import coverage, fates
from tests.chaos.edge.account import Account, Call, Hurt, Memory, Send, read_calls
from tests.chaos.edge.buyers import LIMITS, Crowd
from tests.chaos.edge.client import Client
from tests.chaos.edge.plan import EdgeRound
from tests.chaos.edge.rules import RULES
from tests.chaos.edge.till import Till
from tests.chaos.edge.watch import now_ms, watching
from tests.chaos.faults import AT_THE_EDGE
from tests.chaos.faults.edge import CROWDED, hurts
from tests.chaos.plan import Strike
from tests.chaos.verdict import at_rest, collect, judged

CONNECTIONS_MAX = 500
ROUND_S_MAX = 240.0
BY_DRIVER = frozenset({"S8", "S9", "S10"})


class Played(NamedTuple):
    """What came of a round. `counted`: how often each thing happened that it was meant to test."""

    round: EdgeRound
    hits: list[bool]
    wrong: list[str]
    counted: Counter[str]
    minutes: float
    account: Account | None
    evidence: Evidence | None


class _Seen(NamedTuple):
    client: Client
    hits: list[bool]
    hurt: list[Hurt]
    memory: Memory
    wrong: list[str]


async def play(arena: Arena, planned: EdgeRound) -> Played:
    """One round; whatever is wrong is in the result."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(ROUND_S_MAX):
            seen = await _sell(arena, planned)
            resting, _ = await at_rest(arena.stack)
            evidence = await asyncio.to_thread(collect, arena.stack)
            evidence.at_rest = not resting
    except (StackError, CannotCheck, AssertionError, TimeoutError, OSError) as error:
        arena.tell(f"the round broke off after {time.monotonic() - began:.0f} s")
        arena.leave()
        wrong = [f"the round broke off: {str(error) or type(error).__name__}"]
        return Played(planned, [], wrong, Counter(), planned.lasts_s / 60, None, None)
    account = account_of(seen.client, IdentityKey(arena.stack.layout.secret("identity-key")), evidence)
    begin = min((send.sent_ms for send in account.sends), default=0.0) - 1_000
    account.calls = witnessed(arena.folder, seen.client.gateways, begin)
    account.memory, account.hurt = seen.memory, seen.hurt
    wrong = seen.wrong + resting + await asyncio.to_thread(_wrong, arena, planned, account, evidence)
    counted = await asyncio.to_thread(coverage.counts, account)
    return Played(planned, seen.hits, wrong, counted, planned.lasts_s / 60, account, evidence)


def account_of(client: Client, identity: IdentityKey, evidence: Evidence) -> Account:
    """What a client was told, beside what the log holds."""
    account = Account(LIMITS, len(client.gateways), client.sends, client.looks)
    account.ids = {send.key: fates.purchase_of(identity, send, client.orders[send.key].header) for send in client.sends}
    buyers = {send.buyer for send in client.sends}
    account.names = {buyer: identity.buyer_id(Subject("header", buyer)) for buyer in buyers}
    fates.tell(account, evidence, time.time() * 1000 - now_ms())
    return account


async def _sell(arena: Arena, planned: EdgeRound) -> _Seen:
    dice = Random(planned.seed)
    gateways = dict(zip(arena.names("gateway"), arena.stack.endpoints.gateway, strict=True))
    connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
    with watching(arena.stack.redis) as watch:
        async with aiohttp.ClientSession(connector=connector) as http:
            client = Client(http, gateways)
            crowd = Crowd(client, planned.products, dice, planned.number, planned.gone)
            till = Till(http, arena.stack.endpoints, Random(planned.seed + 1))
            for product in planned.products:
                await till.list(product)
            await till.list(planned.gone, 0)
            hurt: list[Hurt] = []
            hits = await _under_fire(arena, planned, crowd, till, hurt)
            doubtful = await crowd.settle()
            wrong = [f"{len(doubtful)} keys are still in doubt, like {doubtful[0]}"] if doubtful else []
    return _Seen(client, hits, hurt, watch.memory, wrong)


async def _under_fire(arena: Arena, planned: EdgeRound, crowd: Crowd, till: Till, hurt: list[Hurt]) -> list[bool]:
    locks = {fault.target: asyncio.Lock() for fault in AT_THE_EDGE.values()}
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.run(planned.lasts_s))
            for product in planned.products:
                group.create_task(till.wobble(product, planned.lasts_s))
            for strike in planned.strikes:
                if strike.fault in CROWDED:
                    group.create_task(crowd.rush(strike.at_s, strike.lasts_s))
            striking = [group.create_task(_strike(arena, strike, locks, hurt)) for strike in planned.strikes]
            hits = [await struck for struck in striking]
            await asyncio.to_thread(arena.heal)
    except BaseExceptionGroup as group_of:
        raise group_of.exceptions[0] from None
    return hits


async def _strike(arena: Arena, strike: Strike, locks: dict[str, asyncio.Lock], hurt: list[Hurt]) -> bool:
    fault = AT_THE_EDGE[strike.fault]
    await asyncio.sleep(strike.at_s)
    async with locks[fault.target]:
        began = now_ms()
        hit = await asyncio.to_thread(fault.strike, arena, Random(strike.seed), strike.lasts_s)
        hurt.append(Hurt(hurts(strike.fault), began, now_ms()))
    return hit


def witnessed(folder: Path, gateways: Iterable[str], begin_ms: float = 0.0) -> dict[str, list[Call]]:
    """What the witnesses of these gateways told since then."""
    lines = {name: (folder / f"{name}.witness").read_bytes().splitlines() for name in gateways}
    return {name: [call for call in read_calls(told) if call.ended_ms >= begin_ms] for name, told in lines.items()}


def _wrong(arena: Arena, planned: EdgeRound, account: Account, evidence: Evidence) -> list[str]:
    wrong = judged(evidence, [journal(account, product) for product in planned.products], BY_DRIVER)
    assert evidence.database is not None
    rows = evidence.database.rows.keys()
    lost = sorted({send.purchase for send in account.sends if send.accepted} - rows)
    wrong += [f"S8: {len(lost)} accepted purchases have no row, like {lost[0]}"] if lost else []
    for rule in RULES:
        found = list(rule.check(account))
        wrong += [f"{rule.name} is violated {len(found)} times: {one.at}: {one.what}" for one in found[:SAID_MAX]]
    return wrong


def journal(account: Account, product: str) -> Journal:
    """What buyers were told of a product, as `replay` judges it. What was polled, a rule of the edge judges."""
    attempts = [
        _attempt(line, sends) for line, sends in enumerate(account.by_key.values(), 2) if sends[0].product_id == product
    ]
    return Journal(product, attempts)


def _attempt(line: int, sends: list[Send]) -> Attempt:
    answers = [
        Told(send.status, send.raw, send.sent_ms, send.answered_ms)
        for send in sorted(sends, key=lambda one: one.answered_ms)
    ]
    purchase_id = next((send.purchase for send in sends if send.accepted), "")
    one = sends[0]
    return Attempt(one.buyer, one.key, purchase_id, "", duplicate=True, answers=answers, line=line)
